//! Exit codes and error output.

use std::io::Write;
use std::process::ExitCode;

use crate::error::{Error, ErrorKind, Result};

/// Something was left undone that the same command continues.
pub(super) const UNDONE: u8 = 6;

/// Prints the error on stderr, and for `--output json` as an object on
/// stdout. Returns the exit code of its kind.
pub(super) fn report(error: &Error, json: bool) -> ExitCode {
    // With closed streams there is no way left to report anything.
    if json {
        let object = serde_json::json!({
            "error": error.message(), "kind": format!("{:?}", error.kind())
        });
        let _ = writeln!(std::io::stdout(), "{object}");
    }
    let _ = writeln!(std::io::stderr(), "oci-model-csi: {error}");
    code_of(error)
}

/// The exit code of an error that was printed already.
pub(super) fn code_of(error: &Error) -> ExitCode {
    code_of_kind(error.kind())
}

/// The exit code of errors of this meaning.
pub(super) fn code_of_kind(kind: ErrorKind) -> ExitCode {
    ExitCode::from(code(kind))
}

/// Prints a result on stdout.
///
/// # Errors
/// Those of writing to it.
pub(super) fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("writing the result", &e))
}

fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Invalid => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Unauthenticated | ErrorKind::Denied => 4,
        ErrorKind::Corrupt => 5,
        ErrorKind::InProgress
        | ErrorKind::Unavailable
        | ErrorKind::NoSpace
        | ErrorKind::Precondition
        | ErrorKind::Changed
        | ErrorKind::Conflict
        | ErrorKind::OutOfRange
        | ErrorKind::Disk
        | ErrorKind::Internal => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_kind_has_its_documented_exit_code() {
        for (kind, expected) in [
            (ErrorKind::Internal, 1),
            (ErrorKind::Unavailable, 1),
            (ErrorKind::Invalid, 2),
            (ErrorKind::NotFound, 3),
            (ErrorKind::Unauthenticated, 4),
            (ErrorKind::Denied, 4),
            (ErrorKind::Corrupt, 5),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }
}
