//! safetensors: a header of JSON, then the data.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};

use crate::map::{Bytes, MappedFile};
use crate::tensor::Content;
use crate::{DType, Error, Tensor};

const FORMAT: &str = "safetensors file";

/// Returns the tensors and the metadata of a file.
pub(crate) fn read(file: &MappedFile) -> Result<(Content, BTreeMap<String, String>), Error> {
    let corrupt = |reason: String| Error::corrupt(file.path(), FORMAT, reason);
    let (header_len, header) = SafeTensors::read_metadata(file).map_err(|error| {
        corrupt(format!(
            "its header and its {} bytes do not go together ({error}): it is cut short or was \
             changed; download it again",
            file.len()
        ))
    })?;
    let begin = header_len + 8;
    let mut content = Content::default();
    for (name, info) in header.tensors() {
        let Some(dtype) = dtype(info.dtype) else {
            content.unreadable.insert(name, format!("a tensor of {:?}", info.dtype));
            continue;
        };
        let (from, to) = info.data_offsets;
        let storage = Bytes::Part(file.clone(), begin + from..begin + to);
        let tensor = Tensor::contiguous(dtype, info.shape.clone(), storage)
            .map_err(|reason| corrupt(format!("{name} is {reason}")))?;
        content.tensors.insert(name, tensor);
    }
    let metadata = header.metadata().clone().unwrap_or_default();
    Ok((content, metadata.into_iter().collect()))
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}
