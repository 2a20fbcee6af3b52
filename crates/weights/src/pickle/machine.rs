//! The machine: a stack, a memo and an arena of values.

use std::collections::HashMap;

use super::number::{int, long};
use super::opcode as op;
use super::value::{Id, Pickle, StorageValue, Value};
use super::{Failure, Reason, Storage, globals};
use crate::Tensor;

/// Finds the tensor that views a storage: (storage, offset, shape, strides).
pub(crate) type View<'a> =
    dyn FnMut(&Storage, usize, Vec<usize>, Vec<usize>) -> Result<Tensor, String> + 'a;

/// Bytes that copying may cost, whatever the pickle's length.
const SPARE: usize = 1 << 26;
/// Bytes that it may cost for each byte of the pickle. Instructions of two bytes name values that are
/// there and may ask for a copy of any of them; what is saved by libraries copies what it names once.
const PER_BYTE: usize = 64;

/// Runs the pickle at the beginning of `bytes`; returns it and where it ends.
pub(crate) fn run(bytes: &[u8], view: &mut View<'_>) -> Result<(Pickle, usize), Failure> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        left: bytes.len().saturating_mul(PER_BYTE).saturating_add(SPARE),
        view,
    };
    loop {
        let position = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok((Pickle { values: machine.values, root }, machine.at)),
            Err(reason) => return Err(Failure { position, reason }),
        }
    }
}

struct Machine<'a, 'v> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack that marks were set at.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Bytes that copies may still cost.
    left: usize,
    view: &'a mut View<'v>,
}

type Step<T = ()> = Result<T, Reason>;

fn broken<T>(reason: impl Into<String>) -> Step<T> {
    Err(Reason::Broken(reason.into()))
}

impl Machine<'_, '_> {
    /// Runs one instruction; returns the pickle's value at its end.
    fn step(&mut self) -> Step<Option<Id>> {
        let code = self.take(1)?[0];
        match code {
            op::STOP => return self.pop().map(Some),
            op::PROTO => drop(self.take(1)?),
            op::FRAME => drop(self.take(8)?),
            op::MARK => self.marks.push(self.stack.len()),
            op::POP => drop(self.pop()?),
            op::POP_MARK => drop(self.pop_marked()?),
            op::DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }
            op::REDUCE => self.reduce()?,
            op::NEWOBJ => self.new_object()?,
            op::NEWOBJ_EX => {
                // Arguments by name: nothing here asks for them.
                self.pop()?;
                self.new_object()?;
            }
            op::BUILD => self.build()?,
            op::BINPERSID => self.persistent()?,
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.global(&module, &name)?;
            }
            _ if self.scalar(code)? || self.container(code)? || self.memoise(code)? => {}
            _ => {
                return broken(format!(
                    "{code:#04x} is no instruction of a pickle that PyTorch writes; it is damaged, or another \
                     program's"
                ));
            }
        }
        Ok(None)
    }

    /// Instructions that push a number or text.
    fn scalar(&mut self, code: u8) -> Step<bool> {
        let value = match code {
            op::NONE => Value::None,
            op::NEWTRUE => Value::Bool(true),
            op::NEWFALSE => Value::Bool(false),
            op::BININT => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            op::BININT1 => Value::Int(i64::from(self.take(1)?[0])),
            op::BININT2 => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            op::LONG1 => {
                let len = usize::from(self.take(1)?[0]);
                long(self.take(len)?)
            }
            op::LONG4 => {
                let len = self.length4()?;
                long(self.take(len)?)
            }
            op::INT | op::LONG => int(&self.line()?).map_err(Reason::Broken)?,
            op::FLOAT => {
                let line = self.line()?;
                let parsed = line.parse().ok();
                Value::Float(parsed.ok_or_else(|| Reason::Broken(format!("{line:?} is no float")))?)
            }
            op::BINFLOAT => Value::Float(f64::from_be_bytes(self.array()?)),
            op::SHORT_BINSTRING | op::SHORT_BINUNICODE => {
                let len = usize::from(self.take(1)?[0]);
                self.text(len)?
            }
            op::BINSTRING | op::BINUNICODE => {
                let len = self.length4()?;
                self.text(len)?
            }
            op::BINUNICODE8 => {
                let len = self.length8()?;
                self.text(len)?
            }
            op::UNICODE => Value::Str(self.line()?),
            op::STRING => {
                let line = self.line()?;
                Value::Str(line.trim_matches(['\'', '"']).to_owned())
            }
            op::SHORT_BINBYTES => {
                let len = usize::from(self.take(1)?[0]);
                Value::Bytes(self.take(len)?.to_vec())
            }
            op::BINBYTES => {
                let len = self.length4()?;
                Value::Bytes(self.take(len)?.to_vec())
            }
            op::BINBYTES8 | op::BYTEARRAY8 => {
                let len = self.length8()?;
                Value::Bytes(self.take(len)?.to_vec())
            }
            _ => return Ok(false),
        };
        self.push(value);
        Ok(true)
    }

    /// Instructions that make and fill tuples, lists, sets and dictionaries.
    fn container(&mut self, code: u8) -> Step<bool> {
        match code {
            op::EMPTY_TUPLE | op::EMPTY_LIST | op::EMPTY_SET => self.push(Value::List(Vec::new())),
            op::EMPTY_DICT => self.push(Value::Dict(Vec::new())),
            op::TUPLE | op::LIST | op::FROZENSET => {
                let elements = self.pop_marked()?;
                self.push(Value::List(elements));
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let len = usize::from(code - op::TUPLE1) + 1;
                let from = self.stack.len().checked_sub(len);
                let from = from.ok_or_else(|| Reason::Broken("the stack is empty".to_owned()))?;
                let elements = self.stack.split_off(from);
                self.push(Value::List(elements));
            }
            op::DICT => {
                let entries = pairs(self.pop_marked()?)?;
                self.push(Value::Dict(entries));
            }
            op::APPEND => {
                let element = self.pop()?;
                self.extend(vec![element])?;
            }
            op::APPENDS | op::ADDITEMS => {
                let elements = self.pop_marked()?;
                self.extend(elements)?;
            }
            op::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(vec![(key, value)])?;
            }
            op::SETITEMS => {
                let entries = pairs(self.pop_marked()?)?;
                self.insert(entries)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions of the memo.
    fn memoise(&mut self, code: u8) -> Step<bool> {
        let line = |machine: &mut Self| {
            let line = machine.line()?;
            line.parse::<u64>().map_err(|_| Reason::Broken(format!("memo key {line:?}")))
        };
        match code {
            op::MEMOIZE => {
                let key = self.memo.len() as u64;
                self.remember(key)?;
            }
            op::PUT => {
                let key = line(self)?;
                self.remember(key)?;
            }
            op::BINPUT => {
                let key = u64::from(self.take(1)?[0]);
                self.remember(key)?;
            }
            op::LONG_BINPUT => {
                let key = self.length4()? as u64;
                self.remember(key)?;
            }
            op::GET => {
                let key = line(self)?;
                self.recall(key)?;
            }
            op::BINGET => {
                let key = u64::from(self.take(1)?[0]);
                self.recall(key)?;
            }
            op::LONG_BINGET => {
                let key = self.length4()? as u64;
                self.recall(key)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn remember(&mut self, key: u64) -> Step {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Step {
        match self.memo.get(&key) {
            Some(id) => self.stack.push(*id),
            None => return broken(format!("memo {key} was never set")),
        }
        Ok(())
    }

    /// Names a function or class; those that do harm are refused here already.
    fn global(&mut self, module: &str, name: &str) -> Step {
        let full = format!("{module}.{name}");
        if globals::is_harmful(&full) {
            return Err(Reason::Refused(full));
        }
        self.charge(full.len())?;
        self.push(Value::Global(full));
        Ok(())
    }

    /// What a call stands for.
    fn reduce(&mut self) -> Step {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let name = match &self.values[callable] {
            Value::Global(name) => name.clone(),
            // Called is what a name nobody knows gave: that is as little known.
            Value::Object { class, .. } => {
                let class = class.clone();
                return self.object(class, arguments);
            }
            _ => return broken("a call of what is no name"),
        };
        let given = match &self.values[arguments] {
            Value::List(given) => given.as_slice(),
            _ => &[],
        };
        let sizes = given.iter().map(|id| self.values[*id].size());
        let cost = sizes.fold(name.len() + size_of_val(given), usize::saturating_add);
        self.charge(cost)?;
        let value = globals::call(&name, arguments, &mut self.values, self.view)?;
        match value {
            globals::Called::Value(value) => self.push(value),
            globals::Called::Same(id) => self.stack.push(id),
        }
        Ok(())
    }

    fn new_object(&mut self) -> Step {
        let (arguments, class) = (self.pop()?, self.pop()?);
        let class = match &self.values[class] {
            Value::Global(class) | Value::Object { class, .. } => class.clone(),
            _ => return broken("an instance of what is no class"),
        };
        if globals::is_dictionary(&class) {
            self.push(Value::Dict(Vec::new()));
            return Ok(());
        }
        self.object(class, arguments)
    }

    fn object(&mut self, class: String, arguments: Id) -> Step {
        self.charge(class.len())?;
        self.push(Value::Object { class, arguments, state: None });
        Ok(())
    }

    /// Sets an object's attributes. What dictionaries and tensors carry beside is dropped.
    fn build(&mut self) -> Step {
        let given = self.pop()?;
        let top = self.top()?;
        if let Value::Object { state, .. } = &mut self.values[top] {
            *state = Some(given);
        }
        Ok(())
    }

    /// Takes a storage: `('storage', type, key, location, elements)`. Before 1.6 classes came this way,
    /// too, with their source: `('module', class, file, source)`.
    fn persistent(&mut self) -> Step {
        let id = self.pop()?;
        let Value::List(parts) = &self.values[id] else {
            return broken("a storage is no tuple");
        };
        let part = |index: usize| parts.get(index).map(|id| &self.values[*id]);
        if let (Some(Value::Str(kind)), Some(Value::Global(_))) = (part(0), part(1))
            && kind == "module"
        {
            let class = parts[1];
            self.stack.push(class);
            return Ok(());
        }
        let (Some(Value::Str(kind)), Some(Value::Global(class)), Some(key), Some(Value::Int(len))) =
            (part(0), part(1), part(2), part(4))
        else {
            return broken("a storage without type, key and length");
        };
        let key = match key {
            Value::Str(key) => key.clone(),
            Value::Int(key) => key.to_string(),
            _ => return broken("a storage's key is no text"),
        };
        if kind != "storage" {
            return broken(format!("{kind:?} where a storage was expected"));
        }
        let Some(dtype) = globals::storage_type(class) else {
            // Of a type that is not read: so is what views it.
            let class = class.clone();
            return self.object(class, id);
        };
        let len = usize::try_from(*len)
            .map_err(|_| Reason::Broken(format!("a storage of {len} elements")))?;
        self.charge(key.len())?;
        self.push(Value::Storage(StorageValue(Storage { dtype, key, len })));
        Ok(())
    }

    /// Adds to a list; an object that is added to is somebody's kind of list.
    fn extend(&mut self, elements: Vec<Id>) -> Step {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(list) => list.extend(elements),
            object @ Value::Object { .. } => *object = Value::List(elements),
            _ => return broken("elements for what is no list"),
        }
        Ok(())
    }

    /// Adds to a dictionary; an object that is added to is somebody's kind of dictionary.
    fn insert(&mut self, entries: Vec<(Id, Id)>) -> Step {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::Dict(dict) => dict.extend(entries),
            object @ Value::Object { .. } => *object = Value::Dict(entries),
            _ => return broken("entries for what is no dictionary"),
        }
        Ok(())
    }

    /// Counts a copy of this many bytes.
    fn charge(&mut self, bytes: usize) -> Step {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => return broken("it copies far more than it is long; expected weights"),
        }
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
    }

    fn pop(&mut self) -> Step<Id> {
        // What lies below a mark belongs to whoever set it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor {
            Ok(self.stack.pop().unwrap_or_default())
        } else {
            broken("the stack is empty")
        }
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(id) => Ok(*id),
            None => broken("the stack is empty"),
        }
    }

    fn pop_marked(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(height) if height <= self.stack.len() => Ok(self.stack.split_off(height)),
            _ => broken("a mark is missing"),
        }
    }

    fn pop_text(&mut self) -> Step<String> {
        let id = self.pop()?;
        match &self.values[id] {
            Value::Str(text) => Ok(text.clone()),
            _ => broken("a name is no text"),
        }
    }

    fn take(&mut self, len: usize) -> Step<&[u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        match end {
            Some(end) => {
                let taken = &self.bytes[self.at..end];
                self.at = end;
                Ok(taken)
            }
            None => broken(format!("{len} more bytes were expected; it is cut short")),
        }
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn length4(&mut self) -> Step<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn length8(&mut self) -> Step<usize> {
        let len = u64::from_le_bytes(self.array()?);
        usize::try_from(len).map_err(|_| Reason::Broken(format!("a length of {len}")))
    }

    fn text(&mut self, len: usize) -> Step<Value> {
        Ok(Value::Str(String::from_utf8_lossy(self.take(len)?).into_owned()))
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(len) => {
                let line = String::from_utf8_lossy(&rest[..len]).into_owned();
                self.at += len + 1;
                Ok(line)
            }
            None => broken("a line without an end"),
        }
    }
}

fn pairs(elements: Vec<Id>) -> Step<Vec<(Id, Id)>> {
    match elements.len() % 2 {
        0 => Ok(elements.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()),
        _ => broken("a key without a value"),
    }
}
