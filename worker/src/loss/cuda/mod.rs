//! The elementwise work of a tile of logits as one CUDA kernel.
//!
//! A chain of libtorch operations reads and writes the tile once per operation; the kernels of
//! `epilogue.cu` read it once and write it once. They are compiled at run time (NVRTC) for the device
//! they run on, so building needs no CUDA. `element.cuh` holds what is computed per pair, as plain
//! C++; the tests run the very kernels on the host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::ffi::device_memory::address;
use crate::ffi::driver::{self, Argument, Context, Function, Module};
use crate::ffi::nvrtc::{self, Target};

#[cfg(test)]
mod tests;

const PROGRAM: &str = "epilogue.cu";
const SOURCE: &str = concat!(include_str!("element.cuh"), include_str!("epilogue.cu"));
/// Threads of a block, and neighbouring elements per thread, as in `epilogue.cu`.
const THREADS: u32 = 256;
const RUN: u32 = 4;
/// Most blocks of a launch: enough to fill the largest devices several times over.
const MAX_BLOCKS: u32 = 2048;
/// Most blocks side by side over a tile's columns.
const MAX_ACROSS: u32 = 64;

/// Why a tile was not computed.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tensors are not on a GPU.
    #[error("the fused epilogue works on CUDA tensors, got {device:?}")]
    NotCuda { device: Device },
    /// The driver failed.
    #[error("CUDA driver")]
    Driver(#[from] driver::Error),
    /// The kernels were not compiled.
    #[error("kernel compiler")]
    Compiler(#[from] nvrtc::Error),
    /// libtorch failed to allocate the partial sums.
    #[error("partial sums")]
    Torch(#[from] tch::TchError),
    /// Tensors that do not belong together.
    #[error("{what}: expected {expected}, got {actual}")]
    Tensor {
        what: &'static str,
        /// Device, dtype, shape or layout it must have.
        expected: String,
        actual: String,
    },
}

/// Which pairs of a tile are positives.
#[derive(Debug, Clone, Copy)]
pub enum Positives<'a> {
    /// None of them.
    None,
    /// The stretch of diagonal that begins at (`row`, `column`).
    Diagonal {
        /// First row, within the tile.
        row: usize,
        /// Its column.
        column: usize,
        /// Number of positives.
        length: usize,
    },
    /// All pairs whose labels are equal.
    Labels {
        /// Shape `[n]`, i64, contiguous.
        rows: &'a Tensor,
        /// Shape `[m]`, i64, contiguous.
        columns: &'a Tensor,
    },
}

/// Blocks of a grid and threads of a block, both as (x, y): x along columns, y along rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    grid: (u32, u32),
    block: (u32, u32),
}

impl Geometry {
    /// A function of the shape alone, so that sums have the same bits in every run.
    fn of(rows: u32, columns: u32) -> Self {
        let runs = columns.div_ceil(RUN).max(1);
        let across = runs.next_power_of_two().min(THREADS);
        let block = (across, THREADS / across);
        let wide = runs.div_ceil(block.0).min(MAX_ACROSS);
        let high = rows.div_ceil(block.1).clamp(1, MAX_BLOCKS / wide);
        Self { grid: (wide, high), block }
    }
}

/// The compiled kernels of one device.
#[derive(Debug)]
pub struct Epilogues {
    device: Device,
    siglip: Function,
    infonce: Function,
    scratch: Mutex<Scratch>,
}

/// What the blocks of a launch leave for the last of them. Launches follow one another on one stream,
/// so one is enough.
#[derive(Debug)]
struct Scratch {
    /// f64, three per block.
    partials: Tensor,
    /// Zero between launches.
    finished: Tensor,
}

impl Epilogues {
    /// Returns the kernels of a device, compiled at the first call (under a second).
    ///
    /// # Errors
    /// The device is no GPU, or there is no driver or compiler; says what to do.
    pub fn for_device(device: Device) -> Result<Arc<Self>, Error> {
        static COMPILED: OnceLock<Mutex<HashMap<usize, Arc<Epilogues>>>> = OnceLock::new();
        let Device::Cuda(ordinal) = device else { return Err(Error::NotCuda { device }) };
        let compiled = COMPILED.get_or_init(Mutex::default);
        let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epilogues) = compiled.get(&ordinal) {
            return Ok(Arc::clone(epilogues));
        }
        let epilogues = Arc::new(Self::compile(ordinal)?);
        compiled.insert(ordinal, Arc::clone(&epilogues));
        Ok(epilogues)
    }

    fn compile(ordinal: usize) -> Result<Self, Error> {
        let device = Device::Cuda(ordinal);
        let context = Context::primary(ordinal)?;
        let target =
            Target::of_device(context.compute_capability()?, &nvrtc::known_capabilities()?);
        let code = nvrtc::compile(PROGRAM, SOURCE, target)?;
        let module = Module::load(context, &code)?;
        tracing::debug!(?target, bytes = code.bytes().len(), "epilogue kernels compiled");
        Ok(Self {
            device,
            siglip: module.function(c"siglip_tile")?,
            infonce: module.function(c"infonce_tile")?,
            scratch: Mutex::new(Scratch {
                partials: Tensor::f_zeros([3 * i64::from(MAX_BLOCKS)], (Kind::Double, device))?,
                finished: Tensor::f_zeros([1], (Kind::Int, device))?,
            }),
        })
    }

    /// Turns a tile of raw dot products into the sigmoid loss's weights, in place, and adds the
    /// tile's part of the loss and of both scalar gradients to `sums`.
    ///
    /// With s = scale · logits + bias and z = ±1: logits ← w = −z σ(−z s) = B·∂L/∂s, and
    /// sums += [Σ log σ(z s), Σ w (s − β), Σ w] (arXiv:2303.15343, §3.2). Computed in f32, summed in
    /// f64, with the same bits in every run. Queued on the device's default stream: returns at once.
    ///
    /// Shapes: logits `[n, m]` f32, rows contiguous, any row stride; `weights_bf16` the same in bf16:
    /// receives a copy of w; sums `[3]` f64.
    ///
    /// # Errors
    /// Tensors of another device, dtype, shape or layout; the driver's.
    pub fn siglip_tile(
        &self,
        logits: &Tensor,
        scale: f64,
        bias: f64,
        positives: Positives<'_>,
        weights_bf16: Option<&Tensor>,
        sums: &Tensor,
    ) -> Result<(), Error> {
        let Some(tile) = Tile::of(self.device, logits, weights_bf16, positives, sums)? else {
            return Ok(());
        };
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let arguments = tile.arguments(scale, bias, &scratch);
        Ok(self.siglip.launch(tile.geometry.grid, tile.geometry.block, &arguments)?)
    }

    /// Turns a tile of raw dot products into InfoNCE's weights, in place: the second pass, once the
    /// log-sum-exps of all rows and columns are known.
    ///
    /// With s = scale · logits, and p = 1 for positives, else 0: logits ← w = exp(s − row) +
    /// exp(s − column) − 2p = 2B·∂L/∂s, and sums += [Σ w s, Σ p s, Σ w]. Otherwise as
    /// [`Epilogues::siglip_tile`]. Pass scale 1 for logits that are scaled already.
    ///
    /// Shapes: `row_log_sum` `[n]`, `column_log_sum` `[m]`, both f32 and contiguous.
    ///
    /// # Errors
    /// As [`Epilogues::siglip_tile`].
    #[allow(clippy::too_many_arguments)] // what the formula has
    pub fn infonce_tile(
        &self,
        logits: &Tensor,
        scale: f64,
        row_log_sum: &Tensor,
        column_log_sum: &Tensor,
        positives: Positives<'_>,
        weights_bf16: Option<&Tensor>,
        sums: &Tensor,
    ) -> Result<(), Error> {
        let Some(tile) = Tile::of(self.device, logits, weights_bf16, positives, sums)? else {
            return Ok(());
        };
        let vector = |what, tensor: &Tensor, length: u32| {
            contiguous(what, tensor, self.device, Kind::Float, length)
        };
        let rows = vector("row log-sum-exps", row_log_sum, tile.rows)?;
        let columns = vector("column log-sum-exps", column_log_sum, tile.columns)?;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut arguments = tile.arguments(scale, 0.0, &scratch);
        arguments.extend([Argument::Pointer(rows), Argument::Pointer(columns)]);
        Ok(self.infonce.launch(tile.geometry.grid, tile.geometry.block, &arguments)?)
    }
}

/// The checked tensors of a launch.
struct Tile {
    values: u64,
    stride: i64,
    rows: u32,
    columns: u32,
    /// Address and row stride; address 0 when there is none.
    bf16: (u64, i64),
    aligned: bool,
    diagonal: [i32; 3],
    labels: (u64, u64),
    sums: u64,
    geometry: Geometry,
}

impl Tile {
    /// Returns none when the tile is empty: then there is nothing to do.
    fn of(
        device: Device,
        logits: &Tensor,
        bf16: Option<&Tensor>,
        positives: Positives<'_>,
        sums: &Tensor,
    ) -> Result<Option<Self>, Error> {
        let shape = logits.size();
        let values = rows_of("logits", logits, device, Kind::Float, &shape)?;
        let copy = match bf16 {
            Some(copy) => rows_of("bf16 weights", copy, device, Kind::BFloat16, &shape)?,
            None => Rows { address: 0, stride: 0 },
        };
        let sums = contiguous("sums", sums, device, Kind::Double, 3)?;
        let size = |index: usize| -> Result<u32, Error> {
            let limit = i64::from(i32::MAX - (THREADS * RUN) as i32);
            u32::try_from(shape[index]).ok().filter(|n| i64::from(*n) <= limit).ok_or_else(|| {
                let expected = format!("at most {limit} rows and columns");
                Error::Tensor { what: "logits", expected, actual: format!("{shape:?}") }
            })
        };
        let (rows, columns) = (size(0)?, size(1)?);
        let (diagonal, labels) = positive_arguments(device, positives, rows, columns)?;
        if rows == 0 || columns == 0 {
            return Ok(None);
        }
        let aligned = |rows: &Rows, bytes: u64| {
            rows.address.is_multiple_of(bytes) && rows.stride % i64::from(RUN) == 0
        };
        Ok(Some(Self {
            values: values.address,
            stride: values.stride,
            rows,
            columns,
            bf16: (copy.address, copy.stride),
            aligned: aligned(&values, 16) && aligned(&copy, 8),
            diagonal,
            labels,
            sums,
            geometry: Geometry::of(rows, columns),
        }))
    }

    /// The arguments all kernels of `epilogue.cu` begin with, in its order.
    fn arguments(&self, scale: f64, bias: f64, scratch: &Scratch) -> Vec<Argument> {
        let [row, column, length] = self.diagonal;
        vec![
            Argument::Pointer(self.values),
            Argument::Long(self.stride),
            Argument::Int(self.rows as i32),
            Argument::Int(self.columns as i32),
            Argument::Float(scale as f32),
            Argument::Float(bias as f32),
            Argument::Pointer(self.bf16.0),
            Argument::Long(self.bf16.1),
            Argument::Int(i32::from(self.aligned)),
            Argument::Int(row),
            Argument::Int(column),
            Argument::Int(length),
            Argument::Pointer(self.labels.0),
            Argument::Pointer(self.labels.1),
            Argument::Pointer(address(&scratch.partials)),
            Argument::Pointer(address(&scratch.finished)),
            Argument::Pointer(self.sums),
        ]
    }
}

/// Returns the stretch of diagonal and the addresses of both labels.
fn positive_arguments(
    device: Device,
    positives: Positives<'_>,
    rows: u32,
    columns: u32,
) -> Result<([i32; 3], (u64, u64)), Error> {
    match positives {
        Positives::None => Ok(([0; 3], (0, 0))),
        Positives::Diagonal { row, column, length } => {
            let fits = |start: usize, size: u32| {
                start.checked_add(length).is_some_and(|end| end <= size as usize)
            };
            if !fits(row, rows) || !fits(column, columns) {
                return Err(Error::Tensor {
                    what: "positives",
                    expected: format!("a stretch inside [{rows}, {columns}]"),
                    actual: format!("{length} from ({row}, {column})"),
                });
            }
            // In bounds, so below the tile's size, which fits.
            Ok(([row as i32, column as i32, length as i32], (0, 0)))
        }
        Positives::Labels { rows: of_rows, columns: of_columns } => {
            let of_rows = contiguous("row labels", of_rows, device, Kind::Int64, rows)?;
            let of_columns = contiguous("column labels", of_columns, device, Kind::Int64, columns)?;
            Ok(([0; 3], (of_rows, of_columns)))
        }
    }
}

/// A matrix whose rows are contiguous.
struct Rows {
    address: u64,
    /// Elements from one row to the next.
    stride: i64,
}

fn describe(tensor: &Tensor) -> String {
    format!(
        "{:?} of {:?} on {:?}, strides {:?}",
        tensor.size(),
        tensor.kind(),
        tensor.device(),
        tensor.stride()
    )
}

/// Checks a matrix and returns where it is.
fn rows_of(
    what: &'static str,
    tensor: &Tensor,
    device: Device,
    kind: Kind,
    shape: &[i64],
) -> Result<Rows, Error> {
    let stride = tensor.stride();
    let fits = tensor.device() == device
        && tensor.kind() == kind
        && shape.len() == 2
        && tensor.size() == shape
        && (shape[1] <= 1 || stride[1] == 1)
        && (shape[0] <= 1 || stride[0] >= shape[1]);
    if !fits {
        let expected = format!("{shape:?} of {kind:?} on {device:?} with contiguous rows");
        return Err(Error::Tensor { what, expected, actual: describe(tensor) });
    }
    Ok(Rows { address: address(tensor), stride: stride[0] })
}

/// Checks a vector and returns its address.
fn contiguous(
    what: &'static str,
    tensor: &Tensor,
    device: Device,
    kind: Kind,
    length: u32,
) -> Result<u64, Error> {
    let fits = tensor.device() == device
        && tensor.kind() == kind
        && tensor.size() == [i64::from(length)]
        && tensor.is_contiguous();
    if !fits {
        let expected = format!("[{length}] of {kind:?} on {device:?}, contiguous");
        return Err(Error::Tensor { what, expected, actual: describe(tensor) });
    }
    Ok(address(tensor))
}
