//! `ringmaster-worker model`: every stage from a picture and a caption to embeddings, for looking
//! at and for comparing with other tools.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use ringmaster_manifest::model_config::PreprocessCfg;
use ringmaster_manifest::spec::{Accelerator, Precision};
use ringmaster_weights::Weights;
use tch::{Device, Kind, Tensor};

use super::export::{self, Layout, Stored};
use super::{Created, Options, create_model_and_transforms, lookup};
use crate::model::{Mode, normalize};
use ringmaster_inputs::image::{Preprocess, Scratch, decode};
use ringmaster_inputs::text::{Clean, Tokenizer};

/// What to do with a model.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Embeds images and captions: safetensors in, safetensors out.
    Run(Run),
    /// Turns pictures into a model's inputs.
    Preprocess(PreprocessArgs),
    /// Turns captions, one JSON string a line on stdin, into token ids, one JSON list a line.
    Tokenize(Tokenize),
    /// Writes a folder that open_clip or transformers load.
    Export(Export),
    /// Lists the tensors of a file of weights.
    Inspect(Inspect),
}

/// Where a model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A GPU.
    Cuda,
}

/// Which model.
#[derive(Debug, Args)]
pub struct Which {
    /// Name of a model, local-dir:FOLDER, hf-hub:ORG/NAME, or URL of a run's checkpoints.
    #[arg(long)]
    model: String,
    /// Weights: a file (safetensors, .pt, .pth, .bin, .npz) here, in a store or on a web server, a run's
    /// checkpoints, hf-hub:ORG/NAME, or a tag of OpenCLIP's.
    #[arg(long, value_name = "FILE|URL|TAG")]
    pretrained: Option<String>,
    /// Weights of the image tower alone, over the others': as --pretrained, or a ViT of timm's or
    /// Google's.
    #[arg(long, value_name = "FILE|URL")]
    pretrained_image: Option<String>,
    /// Weights of the text tower alone, over the others', or none: a Hugging Face tower begins with those
    /// of its repository otherwise.
    #[arg(long, value_name = "FILE|URL|none")]
    pretrained_text: Option<String>,
    /// Use QuickGELU whatever the model's configuration says.
    #[arg(long)]
    force_quick_gelu: bool,
    /// Load weights although they were trained with the other GELU.
    #[arg(long)]
    allow_gelu_mismatch: bool,
    /// Side of the images in pixels; position embeddings are resized.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(i64).range(1..=8192))]
    force_image_size: Option<i64>,
    /// Tokens of a caption; position embeddings are resized.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(i64).range(2..=65536))]
    force_context_length: Option<i64>,
    /// Seed of the weights where none are loaded.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Which {
    fn create(&self, device: Device) -> anyhow::Result<Created> {
        let options = Options {
            precision: Precision::Fp32,
            device,
            seed: self.seed,
            force_quick_gelu: self.force_quick_gelu,
            force_image_size: self.force_image_size,
            force_context_length: self.force_context_length,
            allow_gelu_mismatch: self.allow_gelu_mismatch,
            pretrained_image: self.pretrained_image.clone(),
            pretrained_text: self.pretrained_text.clone(),
        };
        let created =
            create_model_and_transforms(&self.model, self.pretrained.as_deref(), &options)?;
        for note in &created.notes {
            tracing::info!("{note}");
        }
        Ok(created)
    }
}

/// `model run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    which: Which,
    /// safetensors with `image` f32 [N, 3, H, W], prepared for the model, or `text` i64 [N, L], or
    /// both.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where to write `image_features`, `text_features` (as the towers give them),
    /// `image_features_normalized`, `text_features_normalized` and, of both, `logits` [N, M].
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to compute: on the CPU or on the first GPU.
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceKind,
    /// Inputs that are embedded at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(i64).range(1..))]
    batch_size: i64,
}

/// `model preprocess`.
#[derive(Debug, Args)]
pub struct PreprocessArgs {
    /// Whose preprocessing: a model as in `model run`.
    #[arg(long, required_unless_present = "config")]
    model: Option<String>,
    /// A preprocess_cfg of OpenCLIP's, as JSON: in a file, or written out.
    #[arg(long, value_name = "FILE|JSON", conflicts_with = "model")]
    config: Option<String>,
    /// Where to write `image` f32 [N, 3, S, S].
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Pictures: PNG, JPEG, WebP or GIF.
    #[arg(required = true, value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
}

/// `model tokenize`.
#[derive(Debug, Args)]
pub struct Tokenize {
    /// `clip`, a tokenizer.json, a SentencePiece model, or a folder with either.
    #[arg(long, default_value = "clip", value_name = "clip|PATH")]
    tokenizer: String,
    /// Ids of a caption.
    #[arg(long, default_value_t = 77, value_parser = clap::value_parser!(u16).range(1..))]
    context_length: u16,
    /// How captions are cleaned; default: as the tokenizer's own.
    #[arg(long, value_enum)]
    clean: Option<Clean>,
    /// Replace separator tokens by zeros, as CLIPA's captions need.
    #[arg(long)]
    strip_sep_token: bool,
}

/// `model export`.
#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    which: Which,
    /// For which library.
    #[arg(long, value_enum, default_value = "open-clip")]
    layout: Layout,
    /// Folder to write.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

/// `model inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The file.
    file: PathBuf,
}

/// Does what a command asks.
///
/// # Errors
/// Whatever keeps it from being done, with the place and a remedy.
pub fn run(command: &ModelCommand) -> anyhow::Result<()> {
    let _no_grad = tch::no_grad_guard();
    match command {
        ModelCommand::Run(args) => embed(args),
        ModelCommand::Preprocess(args) => preprocess(args),
        ModelCommand::Tokenize(args) => tokenize(args),
        ModelCommand::Export(args) => {
            let created = args.which.create(Device::Cpu)?;
            export::export(&created.clip, &created.preprocess, args.layout, &args.out)?;
            say(&args.out.display().to_string())
        }
        ModelCommand::Inspect(args) => inspect(&args.file),
    }
}

fn embed(args: &Run) -> anyhow::Result<()> {
    let accelerator = match args.device {
        DeviceKind::Cpu => Accelerator::Cpu,
        DeviceKind::Cuda => Accelerator::Cuda,
    };
    let device = crate::ffi::cuda::device(accelerator, 0).map_err(anyhow::Error::msg)?;
    let inputs = Weights::open(&args.inputs)?;
    let created = args.which.create(device)?;
    let clip = &created.clip;
    let mut out = BTreeMap::new();
    let mut normalized = Vec::new();
    for (input, features) in [("image", "image_features"), ("text", "text_features")] {
        let Some(tensor) = inputs.tensors().get(input) else { continue };
        let shape: Vec<i64> = tensor.shape().iter().map(|size| *size as i64).collect();
        let values = Tensor::from_slice(&tensor.to_f32()).view(shape.as_slice());
        let mut embedded = Vec::new();
        let rows = shape.first().copied().unwrap_or(0);
        for start in (0..rows).step_by(args.batch_size as usize) {
            let part = values.narrow(0, start, args.batch_size.min(rows - start)).to_device(device);
            let features = match input {
                "image" => clip.encode_image(&part, &Mode::Eval)?,
                _ => clip.encode_text(&part.to_kind(Kind::Int64), &Mode::Eval)?,
            };
            embedded.push(features.to_device(Device::Cpu));
        }
        if embedded.is_empty() {
            bail!("{input} of {} has no rows", args.inputs.display());
        }
        let embedded = Tensor::cat(&embedded, 0);
        let unit = normalize(&embedded);
        out.insert(format!("{features}_normalized"), stored(&unit)?);
        out.insert(features.to_owned(), stored(&embedded)?);
        normalized.push(unit);
    }
    match normalized.as_slice() {
        [] => bail!("{} holds neither image nor text", args.inputs.display()),
        [image, text] => {
            let logits = image.mm(&text.tr()) * clip.logit_scale().exp();
            let logits = logits + clip.logit_bias().unwrap_or(0.0);
            out.insert("logits".to_owned(), stored(&logits)?);
        }
        _ => {}
    }
    export::save(&args.out, &out)?;
    say(&args.out.display().to_string())
}

fn stored(tensor: &Tensor) -> anyhow::Result<Stored> {
    let values = Vec::<f32>::try_from(&tensor.contiguous().view([-1]))?;
    Ok(Stored::f32(&tensor.size(), &values))
}

fn preprocess(args: &PreprocessArgs) -> anyhow::Result<()> {
    let config = match (&args.config, &args.model) {
        (Some(config), _) => read_config(config)?,
        (None, Some(model)) => lookup::find(model, None)?.preprocess,
        (None, None) => PreprocessCfg::default(),
    };
    config.check().map_err(anyhow::Error::msg)?;
    let preprocess = Preprocess::new(&config);
    let (mut scratch, size) = (Scratch::default(), preprocess.values());
    let mut values = vec![0.0; size * args.pictures.len()];
    for (path, output) in args.pictures.iter().zip(values.chunks_mut(size)) {
        let place = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(place)?;
        let image = decode(&bytes).with_context(place)?;
        preprocess.eval_into(&image, &mut scratch, output).with_context(place)?;
    }
    let side = i64::from(config.size);
    let image = Stored::f32(&[args.pictures.len() as i64, 3, side, side], &values);
    export::save(&args.out, &BTreeMap::from([("image".to_owned(), image)]))?;
    say(&args.out.display().to_string())
}

/// Reads a configuration from a file, or from the argument itself.
fn read_config(config: &str) -> anyhow::Result<PreprocessCfg> {
    let text = if Path::new(config).is_file() {
        std::fs::read_to_string(config).with_context(|| config.to_owned())?
    } else {
        config.to_owned()
    };
    serde_json::from_str(&text).context("the preprocess_cfg cannot be read")
}

fn tokenize(args: &Tokenize) -> anyhow::Result<()> {
    let length = usize::from(args.context_length);
    let tokenizer = match args.tokenizer.as_str() {
        "clip" => Tokenizer::clip(length),
        path => Tokenizer::open(Path::new(path), length, args.strip_sep_token)?,
    };
    let tokenizer = match args.clean {
        Some(clean) => tokenizer.cleaning(clean),
        None => tokenizer,
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line.context("stdin cannot be read")?;
        let caption: String = serde_json::from_str(&line)
            .with_context(|| format!("line {} is no JSON string", number + 1))?;
        serde_json::to_writer(&mut out, &tokenizer.encode(&caption))?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn inspect(path: &Path) -> anyhow::Result<()> {
    let weights = Weights::open(path)?;
    let mut lines = vec![format!("{} ({:?})", path.display(), weights.format())];
    let mut elements = 0;
    for (name, tensor) in weights.tensors() {
        elements += tensor.len();
        lines.push(format!("{name}  {:?}  {:?}", tensor.dtype(), tensor.shape()));
    }
    lines.push(format!("{} tensors, {elements} elements", weights.tensors().len()));
    say(&lines.join("\n"))
}

fn say(text: &str) -> anyhow::Result<()> {
    // A reader that has gone needs no more.
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
