//! The text form of label selectors.

use crate::{Operator, Requirement, SelectorError};

/// Reads a comma-separated list of `key`, `!key`, `key=value`, `key==value`, `key!=value`, `key>1`, `key<1`,
/// `key in (a,b)` and `key notin (a,b)`.
pub(crate) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut tokens = Tokens { text };
    let mut requirements = Vec::new();
    match tokens.peek() {
        Token::End => return Ok(requirements),
        Token::Word(_) | Token::Symbol("!") => {}
        other => return Err(expected(other, ", expected: !, identifier, or 'end of string'")),
    }
    loop {
        requirements.push(requirement(&mut tokens)?);
        match tokens.next() {
            Token::End => return Ok(requirements),
            Token::Symbol(",") => match tokens.peek() {
                Token::Word(_) | Token::Symbol("!") => {}
                other => return Err(expected(other, ", expected: identifier after ','")),
            },
            other => return Err(expected(other, ", expected: ',' or 'end of string'")),
        }
    }
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<Requirement, SelectorError> {
    const NONE: [&str; 0] = [];
    let negated = tokens.peek() == Token::Symbol("!");
    if negated {
        tokens.next();
    }
    let key = match tokens.next() {
        Token::Word(key) => key,
        other => return Err(expected(other, ", expected: identifier")),
    };
    if negated {
        return Requirement::new(key, Operator::DoesNotExist, NONE);
    }
    if matches!(tokens.peek(), Token::End | Token::Symbol(",")) {
        return Requirement::new(key, Operator::Exists, NONE);
    }
    let operator = match tokens.next() {
        Token::Word("in") => return Requirement::new(key, Operator::In, values(tokens)?),
        Token::Word("notin") => return Requirement::new(key, Operator::NotIn, values(tokens)?),
        Token::Symbol("=" | "==") => Operator::In,
        Token::Symbol("!=") => Operator::NotIn,
        Token::Symbol(">") => Operator::Gt,
        Token::Symbol("<") => Operator::Lt,
        other => return Err(expected(other, ", expected: in, notin, =, ==, !=, >, <")),
    };
    let value = match tokens.peek() {
        Token::End | Token::Symbol(",") => "",
        Token::Word(value) => {
            tokens.next();
            value
        }
        other => return Err(expected(other, ", expected: identifier")),
    };
    Requirement::new(key, operator, [value])
}

/// A parenthesised list; what is missing between commas is the empty value.
fn values<'a>(tokens: &mut Tokens<'a>) -> Result<Vec<&'a str>, SelectorError> {
    match tokens.next() {
        Token::Symbol("(") => {}
        other => return Err(expected(other, " expected: '('")),
    }
    let mut values = Vec::new();
    loop {
        let value = match tokens.peek() {
            Token::Word(value) => {
                tokens.next();
                value
            }
            Token::Symbol("," | ")") => "",
            other => return Err(expected(other, ", expected: ',', ')' or identifier")),
        };
        if !values.contains(&value) {
            values.push(value);
        }
        match tokens.next() {
            Token::Symbol(",") => {}
            Token::Symbol(")") => return Ok(values),
            other => return Err(expected(other, ", expected: ',' or ')'")),
        }
    }
}

fn expected(found: Token<'_>, what: &str) -> SelectorError {
    let found = match found {
        Token::End => "",
        Token::Word(text) | Token::Symbol(text) => text,
    };
    SelectorError::Syntax(format!("unable to parse requirement: found '{found}'{what}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'a str),
    End,
}

struct Tokens<'a> {
    text: &'a str,
}

impl<'a> Tokens<'a> {
    const SYMBOLS: [&'static str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

    fn peek(&self) -> Token<'a> {
        Tokens { text: self.text }.next()
    }

    fn next(&mut self) -> Token<'a> {
        let text = self.text.trim_start_matches([' ', '\t', '\r', '\n']);
        if text.is_empty() {
            return Token::End;
        }
        let symbol =
            Self::SYMBOLS.iter().find(|symbol| text.starts_with(**symbol)).map(|symbol| symbol.len());
        let word = text.find(|c| " \t\r\n=!(),><".contains(c)).unwrap_or(text.len());
        let (token, rest) = text.split_at(symbol.unwrap_or(word));
        self.text = rest;
        if symbol.is_some() { Token::Symbol(token) } else { Token::Word(token) }
    }
}
