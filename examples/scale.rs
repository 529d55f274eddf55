//! How long dispatch and combine take among 16 to 2048 ranks, and which resource is the bottleneck: tables, plots, JSON.
//!
//! `cargo run --release --example scale` prints the tables and writes all into docs/scale/; `-- --help` lists what can be set.
//! docs/scale.md explains the model.

#[path = "scale/mod.rs"]
mod scale;

#[path = "scale/json.rs"]
mod json;
#[path = "scale/plots.rs"]
mod plots;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use scale::constants as c;
use scale::settings::Settings;
use scale::tables;
use scale::time::{Machine, Proxy};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Predicts dispatch and combine among many ranks, and says how far off the model is where there are measurements.
#[derive(Parser)]
#[command(name = "scale", allow_negative_numbers = true)]
struct Args {
    /// Folder for plots and tables; made if it is not there.
    #[arg(default_value = "docs/scale")]
    folder: PathBuf,
    /// File for all figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Numbers of ranks.
    #[arg(long, value_delimiter = ',', default_values_t = Settings::default().ranks, value_parser = count())]
    ranks: Vec<u32>,
    /// GPUs of an NVLink domain.
    #[arg(long, default_value_t = 8, value_parser = count())]
    ranks_per_node: u32,
    /// Tokens of a rank, throughput mode.
    #[arg(long, default_value_t = 4096, value_parser = count())]
    tokens: u32,
    /// Tokens of a rank, low latency.
    #[arg(long, default_value_t = 128, value_parser = count())]
    low_latency_tokens: u32,
    /// Elements of a row.
    #[arg(long, default_value_t = 7168, value_parser = count())]
    hidden: u32,
    /// Experts of a token.
    #[arg(long, default_value_t = 8, value_parser = count())]
    topk: u32,
    /// Experts; as many as ranks where there are more ranks.
    #[arg(long, default_value_t = 256, value_parser = count())]
    experts: u32,
    /// Groups of experts, for the gate that is limited by groups.
    #[arg(long, default_value_t = 8, value_parser = count())]
    groups: u32,
    /// Groups, or nodes, that a token may go to.
    #[arg(long, default_value_t = 4, value_parser = count())]
    top_groups: u32,
    /// Multiprocessors of a throughput operation.
    #[arg(long, default_value_t = c::SMS, value_parser = positive)]
    sms: f64,
    /// Gb/s of a rank's NIC.
    #[arg(long, default_value_t = c::NIC_GBITS, value_parser = positive)]
    nic_gbits: f64,
    /// Share of it that rows reach.
    #[arg(long, default_value_t = c::NIC_EFFICIENCY, value_parser = share)]
    nic_efficiency: f64,
    /// µs from one NIC's being told to the bytes' being in the other GPU.
    #[arg(long, default_value_t = c::NIC_LATENCY_US, value_parser = positive)]
    nic_latency_us: f64,
    /// Millions of messages a second of a NIC.
    #[arg(long, default_value_t = c::NIC_MESSAGES_M, value_parser = positive)]
    nic_messages_m: f64,
    /// Millions of commands a second into the ring.
    #[arg(long, default_value_t = c::RING_M, value_parser = positive)]
    ring_m: f64,
    /// Millions of writes a second of a proxy thread.
    #[arg(long, default_value_t = c::PROXY_M, value_parser = positive)]
    proxy_m: f64,
    /// Proxy threads of a GPU.
    #[arg(long, default_value_t = 1, value_parser = count())]
    proxy_threads: u32,
    /// µs from a kernel's store to the proxy.
    #[arg(long, default_value_t = c::PROXY_LATENCY_US, value_parser = positive)]
    proxy_latency_us: f64,
    /// Rows that a write carries, throughput mode.
    #[arg(long, default_value_t = 1, value_parser = count())]
    rows_per_write: u32,
}

/// A number of things: one at least, and not so many that counts of bytes lose their last digits.
fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 20)
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        Ok(_) => Err("must be finite and above 0".to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    positive(text)
        .and_then(|value| if value <= 1.0 { Ok(value) } else { Err("must be at most 1".to_string()) })
}

impl Args {
    fn settings(&self) -> Settings {
        Settings {
            machine: Machine {
                ranks_per_node: self.ranks_per_node,
                sms: self.sms,
                nic: self.nic_gbits / 8.0 * self.nic_efficiency,
                nic_messages: self.nic_messages_m,
                nic_latency: self.nic_latency_us,
                proxy: Some(Proxy {
                    ring: self.ring_m,
                    posts: self.proxy_m,
                    threads: f64::from(self.proxy_threads),
                    latency: self.proxy_latency_us,
                    rows_per_write: f64::from(self.rows_per_write),
                }),
                ..Machine::H100
            },
            tokens: self.tokens,
            low_latency_tokens: self.low_latency_tokens,
            hidden: self.hidden,
            topk: self.topk,
            experts: self.experts,
            groups: self.groups,
            top_groups: self.top_groups,
            ranks: self.ranks.clone(),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = args.settings();
    if let Err(error) = settings.check() {
        Args::command().error(ErrorKind::ValueValidation, error).exit();
    }
    match write_all(&settings, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(settings: &Settings, args: &Args) -> Result<(), Box<dyn Error>> {
    let text = tables::tables(settings);
    print!("{text}");
    fs::create_dir_all(&args.folder).map_err(|error| named(&args.folder, error))?;
    write(&args.folder.join("tables.md"), &text)?;
    if let Some(file) = &args.json {
        write(file, &(json::json(settings)? + "\n"))?;
    }
    plots::draw(settings, &args.folder)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| named(path, error))
}

fn named(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
