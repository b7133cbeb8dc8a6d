//! Evaluates the closed forms that stand for logits too large to store, such as `f32(6*sin(0.37*i +
//! k) + 3*cos(0.00071*j*(i+1)))`, in f64.
//!
//! Grammar: sum of products of (signed) numbers, variables i, j, k, parentheses and the functions
//! sin, cos, tanh, exp, sqrt, f32 (round to single).

/// A parsed formula.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Formula {
    Number(f64),
    /// Index into the variables (i, j, k).
    Variable(usize),
    Negated(Box<Formula>),
    Binary(Box<Formula>, char, Box<Formula>),
    Call(Function, Box<Formula>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Sin,
    Cos,
    Tanh,
    Exp,
    Sqrt,
    RoundToF32,
}

/// The formula has something the grammar has not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the formula \"{formula}\" at \"{rest}\"")]
pub(super) struct FormulaError {
    pub formula: String,
    pub rest: String,
}

impl Formula {
    pub(super) fn parse(formula: &str) -> Result<Self, FormulaError> {
        let mut parser = Parser { rest: formula };
        let error =
            |rest: &str| FormulaError { formula: formula.to_owned(), rest: rest.to_owned() };
        let parsed = parser.sum().ok_or_else(|| error(parser.rest))?;
        if parser.peek().is_some() { Err(error(parser.rest)) } else { Ok(parsed) }
    }

    /// The value for the variables (i, j, k).
    pub(super) fn evaluate(&self, variables: [f64; 3]) -> f64 {
        match self {
            Self::Number(x) => *x,
            Self::Variable(index) => variables[*index],
            Self::Negated(x) => -x.evaluate(variables),
            Self::Binary(a, operator, b) => {
                let (a, b) = (a.evaluate(variables), b.evaluate(variables));
                match operator {
                    '+' => a + b,
                    '-' => a - b,
                    '*' => a * b,
                    _ => a / b,
                }
            }
            Self::Call(function, x) => {
                let x = x.evaluate(variables);
                match function {
                    Function::Sin => x.sin(),
                    Function::Cos => x.cos(),
                    Function::Tanh => x.tanh(),
                    Function::Exp => x.exp(),
                    Function::Sqrt => x.sqrt(),
                    Function::RoundToF32 => f64::from(x as f32),
                }
            }
        }
    }
}

struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn take(&mut self, wanted: char) -> Option<()> {
        (self.peek()? == wanted).then(|| self.rest = &self.rest[wanted.len_utf8()..])
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> &'t str {
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn sum(&mut self) -> Option<Formula> {
        self.chain(['+', '-'], Self::product)
    }

    fn product(&mut self) -> Option<Formula> {
        self.chain(['*', '/'], Self::factor)
    }

    /// operand (operator operand)*, left to right.
    fn chain(
        &mut self,
        operators: [char; 2],
        operand: fn(&mut Self) -> Option<Formula>,
    ) -> Option<Formula> {
        let mut left = operand(self)?;
        while let Some(operator) = self.peek().filter(|c| operators.contains(c)) {
            self.take(operator)?;
            left = Formula::Binary(Box::new(left), operator, Box::new(operand(self)?));
        }
        Some(left)
    }

    fn factor(&mut self) -> Option<Formula> {
        match self.peek()? {
            '-' => {
                self.take('-')?;
                Some(Formula::Negated(Box::new(self.factor()?)))
            }
            '(' => self.parenthesised(),
            c if c.is_ascii_digit() || c == '.' => self
                .take_while(|c| c.is_ascii_digit() || c == '.')
                .parse()
                .ok()
                .map(Formula::Number),
            _ => {
                let before = self.rest;
                let function = match self.take_while(|c| c.is_ascii_alphanumeric()) {
                    "i" => return Some(Formula::Variable(0)),
                    "j" => return Some(Formula::Variable(1)),
                    "k" => return Some(Formula::Variable(2)),
                    "sin" => Function::Sin,
                    "cos" => Function::Cos,
                    "tanh" => Function::Tanh,
                    "exp" => Function::Exp,
                    "sqrt" => Function::Sqrt,
                    "f32" => Function::RoundToF32,
                    _ => {
                        self.rest = before;
                        return None;
                    }
                };
                Some(Formula::Call(function, Box::new(self.parenthesised()?)))
            }
        }
    }

    fn parenthesised(&mut self) -> Option<Formula> {
        self.take('(')?;
        let inner = self.sum()?;
        self.take(')').map(|()| inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_formula_has_its_literal_value() {
        let formula =
            Formula::parse("f32(6*sin(0.37*i + 0.0113*j + k) + 3*cos(0.00071*j*(i+1)))").unwrap();
        let expected = (6.0 * (0.37 * 2.0 + 0.0113 * 5.0 + 0.25f64).sin()
            + 3.0 * (0.00071f64 * 5.0 * 3.0).cos()) as f32;
        assert_eq!(formula.evaluate([2.0, 5.0, 0.25]), f64::from(expected));
    }

    #[test]
    fn precedence_signs_and_division_are_the_usual_ones() {
        assert_eq!(Formula::parse("1 - 2 - -3*4/ 2").unwrap().evaluate([0.0; 3]), 5.0);
    }

    #[test]
    fn an_unknown_name_is_shown() {
        let error = Formula::parse("2*sinh(i)").unwrap_err();
        assert_eq!(error.rest, "sinh(i)");
        assert!(Formula::parse("(1+2").is_err() && Formula::parse("1 2").is_err());
    }
}
