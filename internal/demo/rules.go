package demo

import _ "embed"

// RulesYAML are classification rules that give the demo's conversations, and
// those of the usual task-oriented data sets, a priority by the attribute
// "service".
//
//go:embed rules.yaml
var RulesYAML []byte
