// Evaluates a Terraform module without its provider, and prints what it would create:
//
//	evaluate DIRECTORY COMPUTED <variables.json
//
// COMPUTED is JSON with the attributes that the provider itself sets, by type:
// {"oci_objectstorage_namespace": ["namespace"]}. Such an attribute gets the value
// TYPE.ATTRIBUTE. What a reference cannot resolve, a value that a validation refuses,
// and a file that is not formatted are in the result's "errors" and "unformatted".
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

type object = map[string]any

// Arguments of Terraform itself.
var meta = map[string]bool{"count": true, "depends_on": true, "provider": true, "providers": true, "source": true}

var functions = map[string]function.Function{
	"alltrue": function.New(&function.Spec{
		Params: []function.Parameter{{Name: "list", Type: cty.List(cty.Bool)}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			all := cty.True
			for _, one := range args[0].AsValueSlice() {
				all = all.And(one)
			}
			return all, nil
		},
	}),
	"can":    tryfunc.CanFunc,
	"concat": stdlib.ConcatFunc,
	"join":   stdlib.JoinFunc,
	"length": stdlib.LengthFunc,
	"regex":  stdlib.RegexFunc,
}

// One module: its blocks, and the values that are known so far, by their first name.
type module struct {
	directory   string
	computed    map[string][]string
	blocks      []*hclsyntax.Block
	sources     map[string][]byte
	known       map[string]map[string]cty.Value
	errors      []string
	unformatted []string
	result      object
}

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: evaluate DIRECTORY COMPUTED <variables.json"))
	}
	computed := map[string][]string{}
	fail(json.Unmarshal([]byte(os.Args[2]), &computed))
	input, err := io.ReadAll(os.Stdin)
	fail(err)
	given := map[string]json.RawMessage{}
	fail(json.Unmarshal(input, &given))
	values := map[string]cty.Value{}
	for name, text := range given {
		kind, err := ctyjson.ImpliedType(text)
		fail(err)
		values[name], err = ctyjson.Unmarshal(text, kind)
		fail(err)
	}
	result, _ := evaluate(os.Args[1], computed, values)
	output, err := json.MarshalIndent(result, "", "  ")
	fail(err)
	fmt.Println(string(output))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "evaluate:", err)
		os.Exit(1)
	}
}

// evaluate returns what is printed, and the values of the module's outputs.
func evaluate(directory string, computed map[string][]string, given map[string]cty.Value) (object, map[string]cty.Value) {
	m := &module{
		directory: directory,
		computed:  computed,
		sources:   map[string][]byte{},
		known:     map[string]map[string]cty.Value{"var": {}, "local": {}},
		result:    object{"variables": object{}, "outputs": object{}, "resources": object{}, "modules": object{}},
	}
	m.read()
	outputs := map[string]cty.Value{}
	if m.variables(given) {
		outputs = m.solve()
	}
	m.result["errors"] = append([]string{}, m.errors...)
	m.result["unformatted"] = append([]string{}, m.unformatted...)
	return m.result, outputs
}

func (m *module) read() {
	paths, err := filepath.Glob(filepath.Join(m.directory, "*.tf"))
	fail(err)
	if len(paths) == 0 {
		fail(fmt.Errorf("%s has no .tf file", m.directory))
	}
	sort.Strings(paths)
	for _, path := range paths {
		source, err := os.ReadFile(path)
		fail(err)
		m.sources[path] = source
		if string(hclwrite.Format(source)) != string(source) {
			m.unformatted = append(m.unformatted, path)
		}
		file, problems := hclsyntax.ParseConfig(source, path, hcl.InitialPos)
		if problems.HasErrors() {
			fail(problems)
		}
		m.blocks = append(m.blocks, file.Body.(*hclsyntax.Body).Blocks...)
	}
}

func (m *module) value(expression hclsyntax.Expression) (cty.Value, hcl.Diagnostics) {
	variables := map[string]cty.Value{}
	for name, values := range m.known {
		variables[name] = cty.ObjectVal(values)
	}
	return expression.Value(&hcl.EvalContext{Variables: variables, Functions: functions})
}

func (m *module) refuse(problems hcl.Diagnostics) {
	for _, problem := range problems {
		m.errors = append(m.errors, problem.Error())
	}
}

// variables takes the given values or the defaults, and reports whether all are valid.
func (m *module) variables(given map[string]cty.Value) bool {
	var declared []*hclsyntax.Block
	described := m.result["variables"].(object)
	for _, block := range m.blocks {
		if block.Type != "variable" {
			continue
		}
		name := block.Labels[0]
		attributes := block.Body.Attributes
		declared = append(declared, block)
		described[name] = object{"required": attributes["default"] == nil, "description": m.text(attributes["description"])}
		if attributes["type"] == nil {
			m.errors = append(m.errors, name+" has no type")
			continue
		}
		kind, problems := typeexpr.TypeConstraint(attributes["type"].Expr)
		m.refuse(problems)
		value, there := given[name]
		if !there && attributes["default"] == nil {
			m.errors = append(m.errors, "no value for the variable "+name)
			continue
		}
		if !there {
			value, problems = m.value(attributes["default"].Expr)
			m.refuse(problems)
		}
		value, err := convert.Convert(value, kind)
		if err != nil {
			m.errors = append(m.errors, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		m.known["var"][name] = value
	}
	for name := range given {
		if described[name] == nil {
			m.errors = append(m.errors, "no variable is called "+name)
		}
	}
	if len(m.errors) == 0 {
		m.validate(declared)
	}
	return len(m.errors) == 0
}

func (m *module) validate(declared []*hclsyntax.Block) {
	for _, block := range declared {
		for _, rule := range block.Body.Blocks {
			holds, problems := m.value(rule.Body.Attributes["condition"].Expr)
			m.refuse(problems)
			if !problems.HasErrors() && holds.False() {
				m.errors = append(m.errors, m.text(rule.Body.Attributes["error_message"]))
			}
		}
	}
}

func (m *module) text(attribute *hclsyntax.Attribute) string {
	if attribute == nil {
		return ""
	}
	value, problems := m.value(attribute.Expr)
	if problems.HasErrors() {
		return ""
	}
	return value.AsString()
}

// solve evaluates everything else, in whatever order the references need.
func (m *module) solve() map[string]cty.Value {
	outputs := map[string]cty.Value{}
	open := map[string]func() hcl.Diagnostics{}
	for _, block := range m.blocks {
		switch block.Type {
		case "locals":
			for name, attribute := range block.Body.Attributes {
				open["local."+name] = func() hcl.Diagnostics { return m.local(name, attribute) }
			}
		case "output":
			open["output."+block.Labels[0]] = func() hcl.Diagnostics { return m.output(block, outputs) }
		case "resource", "data":
			open[block.Type+"."+block.Labels[0]+"."+block.Labels[1]] = func() hcl.Diagnostics { return m.resource(block) }
		case "module":
			open["module."+block.Labels[0]] = func() hcl.Diagnostics { return m.call(block) }
		}
	}
	for solved := true; solved; {
		solved = false
		for name, one := range open {
			if !one().HasErrors() {
				delete(open, name)
				solved = true
			}
		}
	}
	for _, one := range open {
		m.refuse(one())
	}
	return outputs
}

func (m *module) local(name string, attribute *hclsyntax.Attribute) hcl.Diagnostics {
	value, problems := m.value(attribute.Expr)
	if !problems.HasErrors() {
		m.known["local"][name] = value
	}
	return problems
}

func (m *module) output(block *hclsyntax.Block, outputs map[string]cty.Value) hcl.Diagnostics {
	value, problems := m.value(block.Body.Attributes["value"].Expr)
	if !problems.HasErrors() {
		outputs[block.Labels[0]] = value
		description := m.text(block.Body.Attributes["description"])
		m.result["outputs"].(object)[block.Labels[0]] = object{"description": description, "value": plain(value)}
	}
	return problems
}

func (m *module) arguments(block *hclsyntax.Block) (map[string]cty.Value, hcl.Diagnostics) {
	values := map[string]cty.Value{}
	for name, attribute := range block.Body.Attributes {
		if meta[name] {
			continue
		}
		value, problems := m.value(attribute.Expr)
		if problems.HasErrors() {
			return nil, problems
		}
		values[name] = value
	}
	return values, nil
}

func (m *module) resource(block *hclsyntax.Block) hcl.Diagnostics {
	kind, name := block.Labels[0], block.Labels[1]
	values, problems := m.arguments(block)
	if problems.HasErrors() {
		return problems
	}
	arguments := object{}
	for name, value := range values {
		if !value.IsNull() {
			arguments[name] = plain(value)
		}
	}
	for _, inner := range block.Body.Blocks {
		arguments[inner.Type] = object{}
	}
	for _, attribute := range m.computed[kind] {
		values[attribute] = cty.StringVal(kind + "." + attribute)
	}
	value, there := cty.ObjectVal(values), true
	if count := block.Body.Attributes["count"]; count != nil {
		number, problems := m.value(count.Expr)
		if problems.HasErrors() {
			return problems
		}
		there = number.Equals(cty.NumberIntVal(1)).True()
		if there {
			value = cty.TupleVal([]cty.Value{value})
		} else {
			value = cty.EmptyTupleVal
		}
	}
	m.publish(block.Type, kind, name, value)
	if there {
		provider := ""
		if named := block.Body.Attributes["provider"]; named != nil {
			provider = string(named.Expr.Range().SliceBytes(m.sources[named.Expr.Range().Filename]))
		}
		m.result["resources"].(object)[block.Type+"."+kind+"."+name] = object{"arguments": arguments, "provider": provider}
	}
	return nil
}

// publish makes a resource known as KIND.NAME, and a data source as data.KIND.NAME.
func (m *module) publish(block, kind, name string, value cty.Value) {
	place := kind
	if block == "data" {
		place = "data"
		value = cty.ObjectVal(map[string]cty.Value{name: value})
		name = kind
	}
	if m.known[place] == nil {
		m.known[place] = map[string]cty.Value{}
	}
	m.known[place][name] = value
}

func (m *module) call(block *hclsyntax.Block) hcl.Diagnostics {
	values, problems := m.arguments(block)
	if problems.HasErrors() {
		return problems
	}
	source := filepath.Join(m.directory, m.text(block.Body.Attributes["source"]))
	result, outputs := evaluate(source, m.computed, values)
	m.result["modules"].(object)[block.Labels[0]] = result
	m.errors = append(m.errors, result["errors"].([]string)...)
	m.publish("module", "module", block.Labels[0], cty.ObjectVal(outputs))
	return nil
}

func plain(value cty.Value) any {
	text, err := ctyjson.Marshal(value, value.Type())
	fail(err)
	var made any
	fail(json.Unmarshal(text, &made))
	return made
}
