//! `tokenrail bench`: everything that can be told of a machine, beside what it gives at best, in one go.

pub mod args;
mod baseline;
mod collect;
mod csv;
mod plan;
mod print;
pub mod report;
pub mod results;
mod work;

use crate::files;
use crate::progress::Progress;
use args::BenchArgs;
use collect::Collected;
use results::{Results, VERSION};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::time::{Instant, SystemTime};
use tokenrail::gpu::Description;
use tokenrail::{Group, Member};

/// Measures, prints and writes; true if all of it was measured and all went well.
///
/// # Errors
/// Settings, devices or files that are not usable. What goes wrong in a part is printed, and the next begins.
pub fn bench(args: &BenchArgs) -> Result<bool, Box<dyn Error>> {
    give_queues();
    let begun = Instant::now();
    let read = |path| results::read(path).map_err(|error| format!("--baseline: {error}"));
    let before = args.baseline.as_deref().map(read).transpose()?;
    let machine = Machine::open(args)?;
    let steps = plan::steps(args, |ranks| machine.most_sms(ranks))?;
    let mut results = head(args, &machine);
    if let Some(before) = &before {
        baseline::comparable(before, &results)?;
    }
    if let Some(folder) = &args.out {
        fs::create_dir_all(folder).map_err(|error| format!("--out: {}: {error}", folder.display()))?;
    }
    // Better now than after minutes.
    write(args, &results)?;

    let mut collected = Collected::default();
    let (mut failed, mut left_out) = (Vec::new(), Vec::new());
    for (at, step) in steps.iter().enumerate() {
        if begun.elapsed() >= args.limit {
            left_out.push(step.name.as_str());
            continue;
        }
        let progress = Progress::of(format!("{}/{} {}: ", at + 1, steps.len(), step.name), args.quiet);
        match work::measure(args, step, progress, &mut collected) {
            Ok(true) => (),
            Ok(false) => failed.push(step.name.as_str()),
            Err(error) => {
                eprintln!("error: {}: {error}", step.name);
                failed.push(step.name.as_str());
            }
        }
        results = collected.results(&results, |section| args.wants(&[section]));
        results.seconds = begun.elapsed().as_secs_f64();
        write(args, &results)?;
    }

    print!("{}", print::print(&results));
    if let Some(before) = &before {
        print!("{}", baseline::print(&baseline::compare(before, &results)));
    }
    println!("\ntook {:.0} s", results.seconds);
    let well = failed.is_empty() && left_out.is_empty();
    if !left_out.is_empty() {
        println!("LEFT OUT, as they had not begun within {:?}: {}", args.limit, left_out.join("; "));
    }
    if !failed.is_empty() {
        println!("FAILED, see above: {}", failed.join("; "));
    }
    match (well, args.no_check) {
        (false, _) => (),
        (true, true) => println!("nothing was compared with the CPU reference"),
        (true, false) => {
            println!("ok: {} combined rows equal the CPU reference, bit for bit", collected.compared);
        }
    }
    Ok(well)
}

/// Has the driver give a process so many queues of a GPU that ranks which share it do not wait behind each other
/// (docs/decisions.md). Whoever has said how many knows better.
fn give_queues() {
    const QUEUES: &str = "CUDA_DEVICE_MAX_CONNECTIONS";
    if std::env::var_os(QUEUES).is_none() {
        // SAFETY: the command begins here: it has no other thread yet.
        unsafe { std::env::set_var(QUEUES, "32") };
    }
}

/// The devices, by number of ranks.
struct Machine {
    devices: BTreeMap<u32, Vec<Description>>,
    /// Not used: it keeps a device open from one part to the next. One, for every rank has streams, and there are not queues for
    /// many (docs/decisions.md).
    _member: Vec<Member>,
}

impl Machine {
    /// Looks at what so many ranks run on.
    ///
    /// # Errors
    /// Devices, or numbers of ranks, that are not possible.
    fn open(args: &BenchArgs) -> Result<Self, tokenrail::Error> {
        let backend = args.backend.open(args.seed)?;
        let member = Group::in_process(1, &backend)?;
        let mut devices = BTreeMap::new();
        for ranks in args.ranks().into_iter().chain([1]) {
            let members = Group::in_process(ranks, &backend)?;
            devices.insert(ranks, members.iter().map(|member| member.gpu().description().clone()).collect());
        }
        Ok(Self { devices, _member: member })
    }

    /// Multiprocessors that each of so many ranks can have.
    fn most_sms(&self, ranks: u32) -> u32 {
        let devices = self.devices.get(&ranks).into_iter().flatten();
        devices.map(|device| device.multiprocessors / device.ranks).min().unwrap_or(1)
    }

    /// Name of each GPU; of the emulator's, which has one for each rank, one.
    fn names(&self, are_gpus: bool) -> Vec<String> {
        let all = self.devices.values().flatten();
        let gpus: BTreeMap<usize, &str> = all.map(|device| (device.ordinal, device.name.as_str())).collect();
        let each = if are_gpus { gpus.len() } else { 1 };
        gpus.into_values().take(each).map(str::to_owned).collect()
    }
}

/// Results before there are any.
fn head(args: &BenchArgs, machine: &Machine) -> Results {
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    Results {
        version: VERSION,
        tokenrail: env!("CARGO_PKG_VERSION").into(),
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        backend: if args.backend.is_gpu() { "cuda" } else { "emulator" }.into(),
        driver: driver().filter(|_| args.backend.is_gpu()),
        devices: machine.names(args.backend.is_gpu()),
        command: ["tokenrail".into()].into_iter().chain(words).collect::<Vec<String>>().join(" "),
        hidden: args.hidden,
        experts: args.experts,
        topk: args.topk,
        seconds: 0.0,
        ceilings: Vec::new(),
        rows: Vec::new(),
        traffic: Vec::new(),
        budgets: Vec::new(),
    }
}

/// The version of NVIDIA's driver, where it tells it.
fn driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version =
        |word: &&str| word.contains('.') && word.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit());
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

/// Writes everything so far.
fn write(args: &BenchArgs, results: &Results) -> Result<(), Box<dyn Error>> {
    if let Some(folder) = &args.out {
        files::write_json("--out", &folder.join("bench.json"), results)?;
        files::write("--out", &folder.join("bench.csv"), &csv::csv(results)?)?;
        report::write("--out", &folder.join("report.html"), results)?;
    }
    match &args.html {
        Some(path) => report::write("--html", path, results),
        None => Ok(()),
    }
}
