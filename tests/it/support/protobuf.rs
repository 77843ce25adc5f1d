//! Reads the part of the protobuf language that `proto/csi.proto` uses, into
//! the lines of `tests/vectors/csi-v1.12.0-wire.tsv`.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeSet;

const SCALARS: [&str; 5] = ["string", "bytes", "bool", "int32", "int64"];

/// One line for every rpc, field, enum value and message without fields.
pub(crate) fn wire_facts(proto: &str) -> Vec<String> {
    let tokens = tokens(proto);
    let mut names = BTreeSet::new();
    Reader { tokens: &tokens, at: 0, names: &mut names, facts: Vec::new() }.file();
    // The second time every name is known, also those of later messages.
    let mut reader = Reader { tokens: &tokens, at: 0, names: &mut names, facts: Vec::new() };
    reader.file();
    reader.facts
}

fn tokens(proto: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    for line in proto.lines() {
        let code = line.split("//").next().unwrap_or_default();
        let mut word = String::new();
        for c in code.chars().chain([' ']) {
            if c.is_alphanumeric() || matches!(c, '_' | '.' | '"') {
                word.push(c);
                continue;
            }
            if !word.is_empty() {
                tokens.push(std::mem::take(&mut word));
            }
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
        }
    }
    tokens
}

struct Reader<'a> {
    tokens: &'a [String],
    at: usize,
    names: &'a mut BTreeSet<String>,
    facts: Vec<String>,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).expect("csi.proto does not end here")
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn expect(&mut self, token: &str) {
        let found = self.next();
        assert_eq!(found, token, "after {:?}", &self.tokens[self.at.saturating_sub(6)..self.at]);
    }

    fn skip_past(&mut self, token: &str) {
        while self.next() != token {}
    }

    fn file(&mut self) {
        while self.at < self.tokens.len() {
            match self.next() {
                "syntax" | "package" | "import" | "option" => self.skip_past(";"),
                "extend" => self.skip_past("}"),
                "service" => self.service(),
                "message" => self.message(""),
                "enum" => self.enumeration(""),
                other => panic!("{other} is not understood"),
            }
        }
    }

    fn service(&mut self) {
        let service = self.next();
        self.expect("{");
        while self.next() == "rpc" {
            let rpc = self.next();
            let request = self.rpc_type();
            self.expect("returns");
            let response = self.rpc_type();
            self.expect("{");
            self.expect("}");
            self.facts.push(format!("service\t{service}\t{rpc}\t{request}\t{response}"));
        }
    }

    fn rpc_type(&mut self) -> &'a str {
        self.expect("(");
        if self.peek() == "stream" {
            self.next();
        }
        let message = self.next();
        self.expect(")");
        message
    }

    fn message(&mut self, outer: &str) {
        let name = qualified(outer, self.next());
        self.names.insert(name.clone());
        self.expect("{");
        let mut fields = 0;
        loop {
            match self.peek() {
                "}" => break,
                "message" => {
                    self.next();
                    self.message(&name);
                }
                "enum" => {
                    self.next();
                    self.enumeration(&name);
                }
                "oneof" => {
                    self.next();
                    let oneof = self.next();
                    self.expect("{");
                    while self.peek() != "}" {
                        self.field(&name, oneof);
                        fields += 1;
                    }
                    self.expect("}");
                }
                _ => {
                    self.field(&name, "-");
                    fields += 1;
                }
            }
        }
        self.expect("}");
        if fields == 0 {
            self.facts.push(format!("message\t{name}\t(no fields)"));
        }
    }

    fn field(&mut self, message: &str, oneof: &str) {
        let repeated = self.peek() == "repeated";
        if repeated {
            self.next();
        }
        let mut kind = self.next().to_owned();
        if kind == "map" {
            self.expect("<");
            let key = self.next();
            self.expect(",");
            let value = self.next();
            self.expect(">");
            kind = format!("map<{key},{value}>");
        } else {
            kind = self.resolve(message, &kind);
        }
        let name = self.next();
        self.expect("=");
        let number = self.next();
        let mut marks = Vec::new();
        loop {
            match self.next() {
                ";" => break,
                "csi_secret" => marks.push("secret"),
                "alpha_field" => marks.push("alpha"),
                "[" | "(" | ")" | "=" | "true" | "," | "]" => {}
                other => panic!("{other} in the options of {message}.{name}"),
            }
        }
        let repeated = if repeated { "repeated " } else { "" };
        let marks = if marks.is_empty() { "-".to_owned() } else { marks.join(",") };
        self.facts.push(format!(
            "field\t{message}\t{number}\t{repeated}{kind}\t{name}\t{oneof}\t{marks}"
        ));
    }

    /// The full name of a type as a field of `message` names it: the
    /// innermost scope that has it.
    fn resolve(&self, message: &str, kind: &str) -> String {
        if SCALARS.contains(&kind) || kind.starts_with("google.protobuf.") {
            return kind.to_owned();
        }
        let mut scope = message;
        loop {
            let candidate = qualified(scope, kind);
            if self.names.contains(&candidate) || scope.is_empty() {
                return candidate;
            }
            scope = scope.rsplit_once('.').map_or("", |(outer, _)| outer);
        }
    }

    fn enumeration(&mut self, outer: &str) {
        let name = qualified(outer, self.next());
        self.names.insert(name.clone());
        self.expect("{");
        while self.peek() != "}" {
            let value = self.next();
            self.expect("=");
            let number = self.next();
            self.skip_past(";");
            self.facts.push(format!("enum\t{name}\t{number}\t{value}"));
        }
        self.expect("}");
    }
}

fn qualified(outer: &str, name: &str) -> String {
    if outer.is_empty() { name.to_owned() } else { format!("{outer}.{name}") }
}
