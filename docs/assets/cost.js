// The calculator of docs/cost.md: its formula, and a form for it. site/test_site.py runs the formula in Node.
"use strict";

(function () {
  // USD for a GB and a month: Standard tier of Object Storage.
  const STORAGE_PRICE = 0.0255;

  const FIELDS = [
    { name: "size", label: "Size of the model, GB", value: 140 },
    { name: "versions", label: "Versions in the bucket", value: 3 },
    { name: "storagePrice", label: "Price of storage, USD for a GB and a month", value: STORAGE_PRICE },
    { name: "hits", label: "Starts a month that find the model on their node", value: 280 },
    { name: "rate", label: "Rate of a download without the driver, GB/s", value: 0.2 },
    { name: "gpus", label: "GPUs of a pod", value: 8 },
    { name: "gpuPrice", label: "Price of a GPU hour, USD", value: 10 },
  ];

  const RESULTS = [
    { name: "storage", label: "Storage per month", unit: "USD" },
    { name: "seconds", label: "A download without the driver", unit: "s" },
    { name: "gpuHours", label: "GPU hours saved per month", unit: "h" },
    { name: "saved", label: "Saved per month", unit: "USD" },
  ];

  /** The results for numbers by the names of FIELDS, or null if one is missing or impossible. */
  function cost(input) {
    const numbers = FIELDS.map((field) => input[field.name]);
    if (!numbers.every((number) => Number.isFinite(number) && number >= 0) || input.rate === 0) {
      return null;
    }
    const seconds = input.size / input.rate;
    const gpuHours = (input.hits * seconds * input.gpus) / 3600;
    return {
      storage: input.size * input.versions * input.storagePrice,
      seconds,
      gpuHours,
      saved: gpuHours * input.gpuPrice,
    };
  }

  function show(place) {
    const form = document.createElement("form");
    form.addEventListener("submit", (event) => event.preventDefault());
    const inputs = {};
    for (const field of FIELDS) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "number", min: "0", step: "any", value: field.value, name: field.name });
      inputs[field.name] = input;
      label.append(field.label, input);
      form.append(label);
    }
    const output = document.createElement("output");
    output.setAttribute("aria-live", "polite");
    form.append(output);
    const update = () => {
      const pairs = FIELDS.map((field) => [field.name, inputs[field.name].valueAsNumber]);
      const results = cost(Object.fromEntries(pairs));
      output.replaceChildren();
      if (!results) {
        output.append("Write a number in each field; the rate must be above 0.");
        return;
      }
      for (const result of RESULTS) {
        const line = document.createElement("span");
        const value = document.createElement("strong");
        value.textContent = `${results[result.name].toLocaleString("en", { maximumFractionDigits: 2 })} ${result.unit}`;
        line.append(`${result.label}: `, value);
        output.append(line);
      }
    };
    form.addEventListener("input", update);
    update();
    place.replaceChildren(form);
  }

  if (typeof module !== "undefined") {
    module.exports = { FIELDS, cost };
  } else {
    const place = document.getElementById("cost-calculator");
    if (place) {
      show(place);
    }
  }
})();
