//! `oci-model-csi ls URI`

mod show;

use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use clap::builder::BoolishValueParser;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exit;
use super::fetch::Output;
use super::par_args::ParArgs;
use super::storage::{self, StorageArgs};
use crate::browse;
use crate::config::LimitsSection;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::{ModelRequest, ModelUri, Pattern};
use crate::oci::ParUrl;
use crate::resolve::{ClientPool, ResolveLimits, Resolver};
use crate::source::AuthMethod;

const AFTER_HELP: &str = "\
Examples:
  oci-model-csi ls oci://ai-model-cache/models/
  oci-model-csi ls 'oci://ai-model-cache@mytenancy/models/llama*'
  oci-model-csi ls oci://ai-model-cache/models/phi3-mini/ --objects

A model is a directory that directly has a file that loaders open, such as config.json, \
*.safetensors or *.gguf, with everything below it.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct LsArgs {
    /// oci://BUCKET@NAMESPACE/PREFIX, or oci://BUCKET/PREFIX in the tenancy's namespace; the last
    /// part of PREFIX may have *, ? and [...]: quote it. May be left out with --par-file
    #[arg(value_name = "URI")]
    uri: Option<String>,
    /// List the objects of the model under PREFIX, with their checksums
    #[arg(long, env = "OCI_MODEL_CSI_OBJECTS", value_parser = BoolishValueParser::new())]
    objects: bool,
    /// Format of the result on stdout
    #[arg(long, env = "OCI_MODEL_CSI_OUTPUT", value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    par: ParArgs,
    #[command(flatten)]
    storage: StorageArgs,
}

impl LsArgs {
    pub(super) fn wants_json(&self) -> bool {
        self.output == Output::Json
    }

    /// The request for everything under the prefix, and the pattern below it.
    fn request(&self, par: Option<&ParUrl>) -> Result<(ModelRequest, Option<Pattern>)> {
        let split = self.uri.as_deref().map(split_at_pattern);
        let (uri, pattern) = split.map_or((None, None), |(uri, pattern)| (Some(uri), pattern));
        let ModelUri { namespace, bucket, prefix } = ParArgs::model(uri, par)?;
        let pattern = pattern.map(Pattern::parse).transpose()?;
        if self.objects && pattern.is_some() {
            return Err(Error::invalid(
                "--objects lists the objects of one model: name its prefix without *, ? and [",
            ));
        }
        Ok((ModelRequest::of(namespace, bucket, prefix), pattern))
    }
}

/// Splits a URI before the first segment of its prefix that has a wildcard.
fn split_at_pattern(uri: &str) -> (&str, Option<&str>) {
    let Some(wildcard) = uri.find(['*', '?', '[']) else { return (uri, None) };
    match uri[..wildcard].rfind('/') {
        Some(slash) => (&uri[..=slash], Some(uri[slash + 1..].trim_end_matches('/'))),
        None => (uri, None),
    }
}

pub(super) fn run(args: &LsArgs, runtime: &Runtime) -> Result<ExitCode> {
    let par = args.par.read()?;
    let (request, pattern) = args.request(par.as_ref())?;
    let metrics = Arc::new(Metrics::default());
    let settings = args.storage.settings(None, AuthMethod::ApiKey, &metrics)?.with_par(par);
    let limits = ResolveLimits::from(&LimitsSection::default());
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let mut stdout = BufWriter::new(std::io::stdout().lock());
    let code = runtime.block_on(async {
        let connector = storage::connect(settings, &metrics).await?;
        let resolver =
            Resolver::new(ClientPool::new(connector, Vec::new()), limits, &tasks, &shutdown);
        if args.objects {
            return objects(args, &resolver, &request, &mut stdout).await;
        }
        let models = browse::models(&resolver, &request, pattern.as_ref()).await?;
        let route = resolver.route(&request, "").await?;
        let source = resolver.source(&request, &route).await?;
        let text = match args.wants_json() {
            true => show::models_json(&source, &models),
            false => show::models(&models, columns()),
        };
        writeln!(stdout, "{}", text.trim_end()).map_err(|e| write_failed(&e))?;
        Ok(ExitCode::SUCCESS)
    })?;
    stdout.flush().map_err(|e| write_failed(&e))?;
    Ok(code)
}

/// Prints objects as they come: there may be very many. JSON that an error breaks off ends with
/// that error, so that it can be parsed.
async fn objects(
    args: &LsArgs,
    resolver: &Resolver,
    request: &ModelRequest,
    stdout: &mut impl Write,
) -> Result<ExitCode> {
    let route = resolver.route(request, "").await?;
    let source = resolver.source(request, &route).await?;
    let (json, mut is_first) = (args.wants_json(), true);
    let listed = browse::objects(resolver, request, |object| {
        let before = match (json, is_first) {
            (true, true) => show::objects_head(&source),
            (true, false) => ",\n".to_owned(),
            (false, true) => format!("{}\n", show::OBJECT_HEADER),
            (false, false) => String::new(),
        };
        is_first = false;
        let line = match json {
            true => show::object_json(&object).to_string(),
            false => format!("{}\n", show::object(&object)),
        };
        write!(stdout, "{before}{line}").map_err(|e| write_failed(&e))
    });
    let (text, code) = match listed.await {
        Ok(sum) if json => (show::objects_tail(&sum), ExitCode::SUCCESS),
        Ok(sum) => (show::sum(&sum), ExitCode::SUCCESS),
        Err(error) if json && !is_first => {
            (show::objects_broken_off(&error), exit::report(&error, false))
        }
        Err(error) => return Err(error),
    };
    writeln!(stdout, "{text}").map_err(|e| write_failed(&e))?;
    Ok(code)
}

/// The width of the terminal; `None` without one.
fn columns() -> Option<usize> {
    console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns))
}

fn write_failed(error: &std::io::Error) -> Error {
    Error::io("writing the result", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_split_before_its_first_wildcard() {
        for (uri, expected) in [
            ("oci://b/m/", ("oci://b/m/", None)),
            ("oci://b/m/llama*", ("oci://b/m/", Some("llama*"))),
            ("oci://b@ns/m/*/v[12]/", ("oci://b@ns/m/", Some("*/v[12]"))),
            ("oci://b/?", ("oci://b/", Some("?"))),
            ("oci://b*/m", ("oci://", Some("b*/m"))),
        ] {
            assert_eq!(split_at_pattern(uri), expected);
        }
    }
}
