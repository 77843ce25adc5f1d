//! The `oci-model-csi` program: arguments, then one file per subcommand under `cli/`.

use std::process::ExitCode;

fn main() -> ExitCode {
    oci_model_csi::cli::run()
}
