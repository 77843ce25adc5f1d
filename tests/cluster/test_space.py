"""A cache that is full."""

import pytest
from kube import inline, pod

MIB = 1 << 20


@pytest.mark.core
def test_a_pod_whose_model_does_not_fit_says_who_holds_the_space_and_starts_when_it_is_free(team, store, helm):
    for name in ("held", "wanted"):
        store.synthetic("models", f"{name}/weights.bin", 40 * MIB)
    try:
        helm.install({"config": {"cache": {"maxSize": "64MiB"}}})
        team.start("holder", {"model": inline("held/")})
        team.apply(pod("waiting", {"model": inline("wanted/")}))
        text = team.says("waiting", "code = ResourceExhausted", f"held by {team.name}/holder", seconds=200)
        print("figure: what kubectl describe says when the cache is full: "
              + next(line.split("rpc error: ")[1] for line in text.splitlines() if "ResourceExhausted" in line))
        team.delete("holder")
        team.wait("waiting", seconds=180)
        assert int(team.exec("waiting", "wc -c < /model/weights.bin")) == 40 * MIB
    finally:
        helm.install()
