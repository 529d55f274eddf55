//! What was found best by trying, in a file.

use super::Operation;
use crate::{Config, Element};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Numbers of multiprocessors that were found best on a device: what `tokenrail tune` writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// The device's name.
    pub device: String,
    /// What was tried.
    pub entries: Vec<Entry>,
}

/// The best for one operation of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What.
    pub operation: Operation,
    /// Ranks of the group.
    pub ranks: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// What was dispatched.
    pub element: Element,
    /// Experts over all ranks.
    pub experts: u32,
    /// Slots of a token.
    pub topk: u32,
    /// Tokens of each rank.
    pub tokens: u32,
    /// The fewest multiprocessors that come close to the best.
    pub sms: u32,
    /// How long it took with them.
    pub microseconds: f64,
}

/// Why there is no tuning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuningError {
    /// The file cannot be read or written.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is no JSON.
    #[error("{path}: not JSON: {error}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        error: serde_json::Error,
    },
    /// A field is not what it has to be.
    #[error("{path}: {field} = {value}: {limit}", path = path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, such as `entries[2].sms`.
        field: String,
        /// What it is.
        value: String,
        /// What it has to be.
        limit: String,
    },
}

/// The version of the format that is written, and the only one that is read.
const VERSION: u64 = 1;

/// Most bytes of a value that an error shows.
const SHOWN_BYTES: usize = 80;

impl Tuning {
    /// Reads a file that [`Tuning::save`] has written.
    ///
    /// # Errors
    /// [`TuningError`] with the file, and the field, its value and what it has to be.
    pub fn load(path: &Path) -> Result<Self, TuningError> {
        let bytes = fs::read(path).map_err(|error| TuningError::Io { path: path.into(), error })?;
        Self::parse(path, &bytes)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`TuningError::Io`] if that is not possible.
    pub fn save(&self, path: &Path) -> Result<(), TuningError> {
        let failed = |error| TuningError::Io { path: path.into(), error };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        fs::write(&temporary, format!("{:#}\n", self.to_json())).map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)
    }

    /// Multiprocessors for an operation on `tokens` tokens of each rank: those of the entry of this device, operation,
    /// number of ranks and row size whose tokens are nearest, as a ratio; of two as near, the one with fewer. `None`
    /// without such an entry.
    ///
    /// `device` is [`Description::name`](crate::gpu::Description::name).
    pub fn sms(
        &self,
        device: &str,
        operation: Operation,
        config: &Config,
        ranks: u32,
        tokens: u32,
    ) -> Option<u32> {
        let row = |element: Element, hidden: u32| match operation {
            Operation::Combine => (hidden.saturating_mul(2), 0),
            _ => (element.row_bytes(hidden), element.scale_words(hidden)),
        };
        let wanted = row(config.element, config.hidden);
        // As ratios, which are exact where logarithms are not: ties are ties.
        let distance = |entry: &Entry| {
            let (a, b) = (f64::from(entry.tokens.max(1)), f64::from(tokens.max(1)));
            a.max(b) / a.min(b)
        };
        let fits = |entry: &&Entry| {
            let same = (entry.operation, entry.ranks) == (operation, ranks);
            same && row(entry.element, entry.hidden) == wanted
        };
        let entries = self.entries.iter().filter(|_| self.device == device).filter(fits);
        let nearest = entries.min_by(|a, b| {
            distance(a).total_cmp(&distance(b)).then(a.tokens.cmp(&b.tokens)).then(a.sms.cmp(&b.sms))
        });
        nearest.map(|entry| entry.sms)
    }

    fn to_json(&self) -> Value {
        let entries: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| {
                json!({
                    "operation": operation_name(entry.operation),
                    "ranks": entry.ranks,
                    "hidden": entry.hidden,
                    "element": element_name(entry.element),
                    "experts": entry.experts,
                    "topk": entry.topk,
                    "tokens": entry.tokens,
                    "sms": entry.sms,
                    "microseconds": entry.microseconds,
                })
            })
            .collect();
        json!({ "version": VERSION, "device": self.device, "entries": entries })
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, TuningError> {
        let json: Value =
            serde_json::from_slice(bytes).map_err(|error| TuningError::Json { path: path.into(), error })?;
        let file = Fields::of(path, String::new(), &json)?;
        // First: what the rest means is up to it.
        file.read("version", &format!("must be {VERSION}: other versions are not known"), |version| {
            (version.as_u64()? == VERSION).then_some(())
        })?;
        let entries = file.read("entries", "must be an array", Value::as_array)?;
        let device = file.read("device", "must be a device's name", Value::as_str)?.to_owned();
        let entries = entries.iter().enumerate().map(|(at, entry)| {
            let entry = Fields::of(path, format!("entries[{at}]"), entry)?;
            Ok(Entry {
                operation: entry.read("operation", &operation_limit(), |value| operation(value.as_str()?))?,
                ranks: entry.count("ranks", 1)?,
                hidden: entry.count("hidden", 1)?,
                element: entry.read("element", ELEMENT_LIMIT, |value| element(value.as_str()?))?,
                experts: entry.count("experts", 1)?,
                topk: entry.count("topk", 1)?,
                tokens: entry.count("tokens", 0)?,
                sms: entry.count("sms", 1)?,
                microseconds: entry.read("microseconds", "must be a number, 0 or more", |value| {
                    value.as_f64().filter(|&time| time >= 0.0)
                })?,
            })
        });
        Ok(Self { device, entries: entries.collect::<Result<_, TuningError>>()? })
    }
}

/// An object of the file, and where it is.
struct Fields<'a> {
    path: &'a Path,
    place: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(path: &'a Path, place: String, json: &'a Value) -> Result<Self, TuningError> {
        match json.as_object() {
            Some(map) => Ok(Self { path, place, map }),
            None => {
                let field = if place.is_empty() { "the file".to_owned() } else { place };
                Err(bad(path, field, json, "must be an object"))
            }
        }
    }

    fn read<T>(
        &self,
        field: &str,
        limit: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, TuningError> {
        let value = self.map.get(field).unwrap_or(&Value::Null);
        let place = if self.place.is_empty() { field.into() } else { format!("{}.{field}", self.place) };
        convert(value).ok_or_else(|| bad(self.path, place, value, limit))
    }

    fn count(&self, field: &str, least: u32) -> Result<u32, TuningError> {
        let limit = format!("must be a number from {least} to {most}", most = i32::MAX);
        self.read(field, &limit, |value| {
            let count = u32::try_from(value.as_u64()?).ok()?;
            (least..=i32::MAX as u32).contains(&count).then_some(count)
        })
    }
}

fn bad(path: &Path, field: String, value: &Value, limit: &str) -> TuningError {
    let mut value = value.to_string();
    if value.len() > SHOWN_BYTES {
        let end = (0..=SHOWN_BYTES).rev().find(|&at| value.is_char_boundary(at)).unwrap_or(0);
        value.truncate(end);
        value.push('…');
    }
    TuningError::Field { path: path.into(), field, value, limit: limit.into() }
}

const OPERATIONS: [Operation; 3] = [Operation::Dispatch, Operation::DispatchByExpert, Operation::Combine];

fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Dispatch => "dispatch",
        Operation::DispatchByExpert => "dispatch-by-expert",
        Operation::Combine => "combine",
    }
}

fn operation(name: &str) -> Option<Operation> {
    OPERATIONS.into_iter().find(|&operation| operation_name(operation) == name)
}

fn operation_limit() -> String {
    format!("must be one of {:?}", OPERATIONS.map(operation_name))
}

const ELEMENT_LIMIT: &str =
    "must be \"bf16\", \"f16\", \"fp8\", \"fp8-ue8m0\" or \"opaque:row bytes:scale words\"";

fn element_name(element: Element) -> String {
    match element {
        Element::Bf16 => "bf16".into(),
        Element::F16 => "f16".into(),
        Element::Fp8E4m3 => "fp8".into(),
        Element::Fp8E4m3Ue8m0 => "fp8-ue8m0".into(),
        Element::Opaque { row_bytes, scale_words } => format!("opaque:{row_bytes}:{scale_words}"),
    }
}

fn element(name: &str) -> Option<Element> {
    Some(match name {
        "bf16" => Element::Bf16,
        "f16" => Element::F16,
        "fp8" => Element::Fp8E4m3,
        "fp8-ue8m0" => Element::Fp8E4m3Ue8m0,
        _ => {
            let (row_bytes, scale_words) = name.strip_prefix("opaque:")?.split_once(':')?;
            Element::Opaque { row_bytes: row_bytes.parse().ok()?, scale_words: scale_words.parse().ok()? }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(operation: Operation, tokens: u32, sms: u32) -> Entry {
        Entry {
            operation,
            ranks: 2,
            hidden: 7168,
            element: Element::Fp8E4m3,
            experts: 256,
            topk: 8,
            tokens,
            sms,
            microseconds: 12.5,
        }
    }

    fn tuning() -> Tuning {
        let entries = vec![
            entry(Operation::Dispatch, 16, 4),
            entry(Operation::Dispatch, 4096, 16),
            entry(Operation::Combine, 4096, 12),
            Entry {
                element: Element::Opaque { row_bytes: 64, scale_words: 2 },
                ..entry(Operation::DispatchByExpert, 0, 1)
            },
        ];
        Tuning { device: "a GPU".into(), entries }
    }

    fn parse(text: &str) -> Result<Tuning, String> {
        Tuning::parse(Path::new("tuning.json"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_saved_is_loaded() -> Result<(), TuningError> {
        let path = std::env::temp_dir().join(format!("tokenrail-tuning-{}.json", std::process::id()));
        tuning().save(&path)?;
        let loaded = Tuning::load(&path);
        fs::remove_file(&path).map_err(|error| TuningError::Io { path: path.clone(), error })?;
        assert_eq!(loaded?, tuning());
        let missing = Tuning::load(&path).unwrap_err().to_string();
        assert!(missing.starts_with(&path.display().to_string()), "{missing}");
        Ok(())
    }

    #[test]
    fn the_nearest_entry_of_the_same_kind_is_taken() {
        let (tuning, config) =
            (tuning(), Config { element: Element::Fp8E4m3, ..Config::new(256, 8, 7168, 4096) });
        let sms = |operation, tokens| tuning.sms("a GPU", operation, &config, 2, tokens);
        assert_eq!(sms(Operation::Dispatch, 4096), Some(16));
        // 256 is as far from 16 as from 4096: the fewer tokens.
        assert_eq!(
            [0, 1, 255, 256, 257, 1 << 20].map(|tokens| sms(Operation::Dispatch, tokens)),
            [Some(4), Some(4), Some(4), Some(4), Some(16), Some(16)]
        );
        assert_eq!(sms(Operation::DispatchByExpert, 4096), None);
        let bf16 = Config { element: Element::Bf16, ..config.clone() };
        assert_eq!(tuning.sms("a GPU", Operation::Dispatch, &bf16, 2, 4096), None);
        // Combined rows are as long, whatever was dispatched.
        assert_eq!(tuning.sms("a GPU", Operation::Combine, &bf16, 2, 4096), Some(12));
        assert_eq!(tuning.sms("a GPU", Operation::Combine, &config, 4, 4096), None);
        assert_eq!(tuning.sms("another", Operation::Combine, &config, 2, 4096), None);
    }

    #[test]
    fn bad_files_are_named_with_field_and_value() {
        let good = tuning().to_json().to_string();
        assert_eq!(parse(&good), Ok(tuning()));
        for (from, to, says) in [
            (r#""version":1"#, r#""version":2"#, "tuning.json: version = 2: must be 1"),
            (r#""version":1"#, r#""of":1"#, "tuning.json: version = null: must be 1"),
            (r#""device":"a GPU""#, r#""device":7"#, "tuning.json: device = 7: must be"),
            (r#""sms":16"#, r#""sms":0"#, "tuning.json: entries[1].sms = 0: must be a number from 1"),
            (r#""sms":16"#, r#""sms":4294967296"#, "entries[1].sms = 4294967296"),
            (r#""sms":16"#, r#""sms":"x""#, r#"entries[1].sms = "x""#),
            (
                r#""operation":"combine""#,
                r#""operation":"both""#,
                r#"entries[2].operation = "both": must be one of"#,
            ),
            (r#""element":"opaque:64:2""#, r#""element":"opaque:64""#, r#"entries[3].element = "opaque:64""#),
            (r#""microseconds":12.5"#, r#""microseconds":-1"#, "entries[0].microseconds = -1"),
        ] {
            let changed = good.replacen(from, to, 1);
            assert_ne!(changed, good, "{from}");
            let error = parse(&changed).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(parse("[1]").unwrap_err().contains("the file = [1]: must be an object"));
        assert!(parse("{").unwrap_err().contains("tuning.json: not JSON"));
        let long = format!(r#"{{"version":"{}"}}"#, "é".repeat(1000));
        assert!(parse(&long).unwrap_err().len() < 250);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Tuning::parse(Path::new("tuning.json"), &bytes);
        }

        #[test]
        fn any_change_of_a_good_file_is_survived(at in 0usize..1 << 16, byte: u8, cut in 0usize..1 << 16) {
            let mut bytes = tuning().to_json().to_string().into_bytes();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(length - cut % length / 8);
            let _ = Tuning::parse(Path::new("tuning.json"), &bytes);
        }
    }
}
