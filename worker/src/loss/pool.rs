//! Memory for blocks that travel and their sums, used again and again.

use tch::{Device, Kind, TchError, Tensor};

/// Tensors that belong together, with as many rows each.
pub(super) struct Chunk {
    tensors: Vec<Tensor>,
    /// What the tensors are views of, when a [`Pool`] is to have it back.
    memory: Option<Vec<Tensor>>,
}

impl Chunk {
    /// Tensors that somebody else keeps.
    pub(super) fn lent(tensors: Vec<Tensor>) -> Self {
        Self { tensors, memory: None }
    }

    /// The same tensors, lent.
    pub(super) fn lend(&self) -> Self {
        Self::lent(self.tensors.iter().map(Tensor::shallow_clone).collect())
    }

    pub(super) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The first tensor; sums have no other.
    pub(super) fn first(&self) -> &Tensor {
        &self.tensors[0]
    }

    pub(super) fn first_mut(&mut self) -> &mut Tensor {
        &mut self.tensors[0]
    }
}

/// Chunks of one kind that nobody uses at the moment.
pub(super) struct Pool {
    /// Shape of a full chunk's tensors, their dtype and device.
    templates: Vec<(Vec<i64>, Kind, Device)>,
    free: Vec<Vec<Tensor>>,
}

impl Pool {
    /// For chunks of up to `rows` rows of what `tensors` hold.
    pub(super) fn like(tensors: &[Tensor], rows: usize) -> Self {
        let template = |t: &Tensor| {
            let mut shape = t.size();
            shape[0] = rows as i64;
            (shape, t.kind(), t.device())
        };
        Self { templates: tensors.iter().map(template).collect(), free: Vec::new() }
    }

    /// Makes sure that there are `count` chunks, and that the system has given their memory.
    pub(super) fn fill(&mut self, count: usize) -> Result<(), TchError> {
        while self.free.len() < count {
            let memory = self.allocate()?;
            for tensor in &memory {
                let _ = tensor.shallow_clone().f_zero_()?;
            }
            self.free.push(memory);
        }
        Ok(())
    }

    /// Gives the chunks one more tensor each, like `tensor`. None may be in use.
    pub(super) fn add(&mut self, tensor: &Tensor) -> Result<(), TchError> {
        let mut shape = tensor.size();
        shape[0] = self.templates[0].0[0];
        let (kind, device) = (tensor.kind(), tensor.device());
        for memory in &mut self.free {
            memory.push(Tensor::f_zeros(shape.as_slice(), (kind, device))?);
        }
        self.templates.push((shape, kind, device));
        Ok(())
    }

    /// Returns a chunk of `rows` rows with any contents.
    pub(super) fn take(&mut self, rows: usize) -> Result<Chunk, TchError> {
        let memory = match self.free.pop() {
            Some(memory) => memory,
            None => self.allocate()?,
        };
        let tensors = memory.iter().map(|tensor| tensor.narrow(0, 0, rows as i64)).collect();
        Ok(Chunk { tensors, memory: Some(memory) })
    }

    /// Takes a chunk back, unless it was lent.
    pub(super) fn give(&mut self, chunk: Chunk) {
        self.free.extend(chunk.memory);
    }

    fn allocate(&self) -> Result<Vec<Tensor>, TchError> {
        let allocate = |(shape, kind, device): &(Vec<i64>, Kind, Device)| {
            Tensor::f_empty(shape.as_slice(), (*kind, *device))
        };
        self.templates.iter().map(allocate).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_lent_tensors_do_not() {
        let like = Tensor::zeros([1, 3], (Kind::Float, Device::Cpu));
        let mut pool = Pool::like(&[like.shallow_clone()], 8);
        pool.fill(1).unwrap();
        let chunk = pool.take(5).unwrap();
        assert_eq!(chunk.first().size(), [5, 3]);
        let address = chunk.first().data_ptr();
        pool.give(Chunk::lent(vec![like]));
        assert!(pool.free.is_empty());
        pool.give(chunk);
        pool.add(&Tensor::zeros([1], (Kind::Int64, Device::Cpu))).unwrap();
        let chunk = pool.take(8).unwrap();
        assert_eq!(chunk.first().data_ptr(), address, "the same memory");
        assert_eq!((chunk.tensors()[1].size(), chunk.tensors()[1].kind()), (vec![8], Kind::Int64));
    }
}
