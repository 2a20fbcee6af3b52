//! Where towers get their parameters from.
//!
//! A tower's constructor runs twice: first to list what it is made of, then, once the flat buffers
//! are laid out, to take its views of them. So names, shapes, initial values and their use stand in
//! one place.

use std::cell::RefCell;

use tch::Tensor;

use super::init::Init;
use super::params::{Params, Role, Spec, Tower};

/// A place in a model's tree of names, such as `visual.transformer.resblocks.0.`.
pub(super) struct Vars<'a> {
    source: &'a Source<'a>,
    tower: Tower,
    prefix: String,
}

/// What a request for a parameter does.
enum Source<'a> {
    /// Notes it down, and gives an undefined tensor.
    List(RefCell<Vec<Spec>>),
    /// Gives the view.
    Views(&'a Params),
}

/// Runs a constructor to list its parameters.
pub(super) fn list(construct: impl Fn(&Vars<'_>)) -> Vec<Spec> {
    let source = Source::List(RefCell::default());
    construct(&Vars { source: &source, tower: Tower::Head, prefix: String::new() });
    match source {
        Source::List(specs) => specs.into_inner(),
        Source::Views(_) => Vec::new(),
    }
}

/// Runs a constructor on parameters that [`list`] has listed.
pub(super) fn build<T>(params: &Params, construct: impl Fn(&Vars<'_>) -> T) -> T {
    let source = Source::Views(params);
    construct(&Vars { source: &source, tower: Tower::Head, prefix: String::new() })
}

impl<'a> Vars<'a> {
    /// Returns the place under `name`.
    pub(super) fn sub(&self, name: impl std::fmt::Display) -> Self {
        let prefix = format!("{}{name}.", self.prefix);
        Self { source: self.source, tower: self.tower, prefix }
    }

    /// Returns the same place for parameters of `tower`.
    pub(super) fn of(&self, tower: Tower) -> Self {
        Self { source: self.source, tower, prefix: self.prefix.clone() }
    }

    /// Returns a parameter. Weight decay applies to matrices and filters, not to vectors and
    /// scalars, as in OpenCLIP.
    pub(super) fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.take(name, shape, shape.len() > 1, Role::Parameter, init)
    }

    /// Returns a position, class or segment embedding: no weight decay, whatever its shape.
    pub(super) fn embedding(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.take(name, shape, false, Role::Parameter, init)
    }

    /// Returns a parameter that is never learned.
    pub(super) fn fixed(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.take(name, shape, false, Role::Fixed, init)
    }

    /// Returns a running statistic: what a forward pass in training writes.
    pub(super) fn statistic(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.take(name, shape, false, Role::Statistic, init)
    }

    fn take(&self, name: &str, shape: &[i64], decay: bool, role: Role, init: Init) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        match self.source {
            Source::List(specs) => {
                let shape = shape.to_vec();
                let tower = self.tower;
                specs.borrow_mut().push(Spec { name, shape, tower, decay, role, init });
                Tensor::new()
            }
            Source::Views(params) => params
                .get(&name)
                .expect("the same constructor has listed this parameter")
                .shallow_clone(),
        }
    }
}
