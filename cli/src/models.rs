//! `ringmaster models`: the models a manifest can name.

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::model_config::ModelConfig;
use serde_json::{Value, json};

use super::error::Error;
use super::output;

/// Which models to list.
#[derive(Debug, Args)]
pub(crate) struct Models {
    /// Only models whose name holds this text
    #[arg(value_name = "TEXT")]
    filter: Option<String>,
    /// Print the configuration of the one model of this name, in OpenCLIP's format
    #[arg(long, value_name = "NAME", conflicts_with_all = ["filter", "json"])]
    config: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Lists models with their sizes, or prints one's configuration.
pub(crate) fn models(args: &Models) -> Result<(), Error> {
    let catalogue = ModelCatalogue::from_env().map_err(Error::Models)?;
    if let Some(name) = &args.config {
        let config = catalogue.get(name).ok_or_else(|| unknown(name, &catalogue))?;
        return output::print_json(&config.to_json());
    }
    let filter = args.filter.as_deref().unwrap_or_default().to_lowercase();
    let chosen: Vec<(&str, &ModelConfig)> =
        catalogue.iter().filter(|(name, _)| name.to_lowercase().contains(&filter)).collect();
    if args.json {
        output::print_json(&chosen.iter().map(|(name, config)| row(name, config)).collect())
    } else if chosen.is_empty() {
        Err(unknown(&filter, &catalogue))
    } else {
        output::print(&table(&chosen))
    }
}

fn unknown(name: &str, catalogue: &ModelCatalogue) -> Error {
    let nearest = catalogue.nearest(name).into_iter().map(str::to_owned).collect();
    Error::UnknownModel { name: name.to_owned(), nearest }
}

fn row(name: &str, config: &ModelConfig) -> Value {
    let (image, text) = (config.image_size(), config.text_size());
    json!({
        "name": name,
        "embed_dim": config.embed_dim,
        "image_size": config.vision_cfg.image_size,
        "context_length": config.text_cfg.context_length,
        "parameters": config.parameters(),
        "image_parameters": image.parameters,
        "text_parameters": text.parameters,
        "image_flops": image.flops,
        "text_flops": text.flops,
    })
}

fn table(models: &[(&str, &ModelConfig)]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "MODEL",
        "IMAGE",
        "CONTEXT",
        "EMBEDDING",
        "PARAMETERS",
        "OF IMAGE",
        "OF TEXT",
        "GFLOPS/IMAGE",
        "GFLOPS/TEXT",
    ]);
    for (name, config) in models {
        let (image, text) = (config.image_size(), config.text_size());
        let millions = |count: i64| format!("{:.2} M", count as f64 / 1e6);
        let billions = |count: i64| format!("{:.2}", count as f64 / 1e9);
        table.add_row([
            (*name).to_owned(),
            config.vision_cfg.image_size.to_string(),
            config.text_cfg.context_length.to_string(),
            config.embed_dim.to_string(),
            millions(config.parameters()),
            millions(image.parameters),
            millions(text.parameters),
            billions(image.flops),
            billions(text.flops),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<String> =
        table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}
