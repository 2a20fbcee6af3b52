//! What a machine has for GPU tests: driver, GPU, PyTorch and the libraries PyTorch brings.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// Prints what an installed PyTorch knows, as one line of JSON.
const ASK_PYTORCH: &str = r#"
import json, os, torch
lib = os.path.join(os.path.dirname(torch.__file__), "lib")
cuda = torch.cuda.is_available()
nccl = torch.cuda.nccl.version() if cuda else None
print(json.dumps({
    "pytorch": torch.__version__,
    "cuda": torch.version.cuda,
    "nccl": ".".join(map(str, nccl)) if nccl else None,
    "sees_gpu": cuda,
    "gpu": torch.cuda.get_device_name(0) if cuda else None,
    "capability": "%d.%d" % torch.cuda.get_device_capability(0) if cuda else None,
    "lib": lib,
}))
"#;

/// The machine a report comes from. Absent fields are unknown there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Name of the first GPU.
    pub(crate) gpu: Option<String>,
    /// GPUs the driver shows.
    pub(crate) gpus: usize,
    /// Memory of the first GPU, as nvidia-smi prints it.
    pub(crate) gpu_memory: Option<String>,
    /// Compute capability of the first GPU.
    pub(crate) capability: Option<String>,
    /// Version of NVIDIA's driver.
    pub(crate) driver: Option<String>,
    /// Version of CUDA that PyTorch was built for.
    pub(crate) cuda: Option<String>,
    /// Version of NCCL that PyTorch uses.
    pub(crate) nccl: Option<String>,
    /// Version of PyTorch.
    pub(crate) pytorch: Option<String>,
    /// Processor architecture and system.
    pub(crate) system: String,
}

/// What PyTorch says of itself.
#[derive(Debug, Deserialize)]
struct PyTorch {
    pytorch: String,
    cuda: Option<String>,
    nccl: Option<String>,
    sees_gpu: bool,
    gpu: Option<String>,
    capability: Option<String>,
    lib: PathBuf,
}

/// A machine, and what running GPU programs on it takes.
#[derive(Debug)]
pub(crate) struct Probe {
    /// For the report.
    pub(crate) machine: Machine,
    /// `torch/lib` of the installed PyTorch, or why GPU programs cannot run.
    pub(crate) libtorch: Result<PathBuf, String>,
}

impl Probe {
    /// Looks at this machine, with `python` as the interpreter that may have PyTorch.
    pub(crate) fn of(python: &str) -> Self {
        let mut machine = Machine {
            system: format!("{} {}", std::env::consts::ARCH, std::env::consts::OS),
            ..Machine::default()
        };
        let smi = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
        let listed = answer("nvidia-smi", &smi);
        if let Ok(text) = &listed {
            read_smi(text, &mut machine);
        }
        let torch = answer(python, &["-c", ASK_PYTORCH]).and_then(|text| {
            let line = text.lines().last().unwrap_or_default().to_owned();
            serde_json::from_str::<PyTorch>(&line).map_err(|e| format!("unexpected answer: {e}"))
        });
        if let Ok(torch) = &torch {
            machine.pytorch = Some(torch.pytorch.clone());
            machine.cuda.clone_from(&torch.cuda);
            machine.nccl.clone_from(&torch.nccl);
            machine.capability.clone_from(&torch.capability);
            machine.gpu = machine.gpu.or_else(|| torch.gpu.clone());
        }
        let libtorch = usable(&listed, machine.gpus, python, torch);
        Self { machine, libtorch }
    }
}

/// Returns `torch/lib`, or the first reason why nothing can run on a GPU here.
fn usable(
    listed: &Result<String, String>,
    gpus: usize,
    python: &str,
    torch: Result<PyTorch, String>,
) -> Result<PathBuf, String> {
    // Containers may show a GPU without nvidia-smi: what PyTorch sees decides.
    let sees_gpu = torch.as_ref().is_ok_and(|torch| torch.sees_gpu);
    if !sees_gpu {
        if let Err(why) = listed {
            return Err(format!("this machine has no GPU (nvidia-smi: {why})"));
        }
        if gpus == 0 {
            return Err("this machine has no GPU (nvidia-smi lists none)".to_owned());
        }
    }
    let torch = torch.map_err(|why| format!("{python} cannot import torch: {why}"))?;
    if !torch.pytorch.starts_with("2.11.") {
        return Err(format!(
            "the programs are built for PyTorch 2.11, {python} has {}",
            torch.pytorch
        ));
    }
    if !torch.sees_gpu {
        return Err(format!("PyTorch {} sees no GPU", torch.pytorch));
    }
    Ok(torch.lib)
}

fn read_smi(text: &str, machine: &mut Machine) {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    machine.gpus = lines.len();
    let Some(first) = lines.first() else { return };
    let mut fields = first.split(',').map(|field| Some(field.trim().to_owned()));
    machine.gpu = fields.next().flatten();
    machine.gpu_memory = fields.next().flatten();
    machine.driver = fields.next().flatten();
}

/// Returns what a program printed, or why there is nothing.
fn answer(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(format!("{}: {}", output.status, last.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `LD_LIBRARY_PATH` under which the worker finds the CUDA half of libtorch, NCCL and NVRTC.
pub(crate) fn library_path(torch_lib: &Path) -> OsString {
    let site = torch_lib.parent().and_then(Path::parent).unwrap_or(torch_lib);
    let folders =
        [torch_lib.to_owned(), site.join("nvidia/nccl/lib"), site.join("nvidia/cu13/lib")];
    let existing = folders.into_iter().filter(|folder| folder.is_dir());
    let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    // A CPU-only libtorch in front would hide the installed one.
    let others: Vec<PathBuf> = std::env::split_paths(&inherited)
        .filter(|path| !path.as_os_str().is_empty() && !path.join("libtorch_cpu.so").exists())
        .collect();
    std::env::join_paths(existing.chain(others)).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn torch(version: &str, sees_gpu: bool) -> Result<PyTorch, String> {
        let text = format!(
            "{{\"pytorch\":\"{version}\",\"cuda\":\"13.0\",\"nccl\":null,\"sees_gpu\":{sees_gpu},\
             \"gpu\":null,\"capability\":null,\"lib\":\"/site/torch/lib\"}}"
        );
        serde_json::from_str(&text).map_err(|e| e.to_string())
    }

    #[test]
    fn each_thing_that_is_missing_is_the_reason_nothing_runs() {
        let none = Err("No such file or directory".to_owned());
        let some = Ok("GPU".to_owned());
        let reason = |listed: &_, gpus, torch| usable(listed, gpus, "python3", torch).unwrap_err();
        assert!(reason(&none, 0, torch("2.11.0", false)).starts_with("this machine has no GPU"));
        assert!(reason(&some, 0, torch("2.11.0", false)).contains("lists none"));
        let text = reason(&some, 1, Err("No module named 'torch'".to_owned()));
        assert_eq!(text, "python3 cannot import torch: No module named 'torch'");
        assert!(reason(&some, 1, torch("2.10.0+cu130", true)).contains("2.11, python3 has 2.10.0"));
        assert_eq!(reason(&some, 1, torch("2.11.0+cpu", false)), "PyTorch 2.11.0+cpu sees no GPU");
        let found = usable(&none, 0, "python3", torch("2.11.0+cu130", true));
        assert_eq!(found.unwrap(), Path::new("/site/torch/lib"), "a container without nvidia-smi");
    }

    #[test]
    fn what_nvidia_smi_lists_is_read() {
        let mut machine = Machine::default();
        read_smi(
            "NVIDIA X100, 81559 MiB, 580.65.06\nNVIDIA X100, 81559 MiB, 580.65.06\n",
            &mut machine,
        );
        assert_eq!(machine.gpus, 2);
        assert_eq!(machine.gpu.as_deref(), Some("NVIDIA X100"));
        assert_eq!(machine.driver.as_deref(), Some("580.65.06"));
    }
}
