//! Maps error kinds to gRPC codes: the only place that creates a [`Status`].
//!
//! kubelet treats a code as **final** or not (`isFinalError` in its CSI client).
//! Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and Aborted are not
//! final: the volume may be half mounted, so kubelet keeps its directory, retries,
//! and is sure to call NodeUnpublishVolume. Every other code is final: kubelet
//! removes the directory and may never call NodeUnpublishVolume. So a final answer
//! must leave nothing behind, and must not be given while work continues. kubelet
//! retries in both cases.

use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};

/// The longest message, in characters: it ends up in events and `kubectl describe`.
pub const MESSAGE_MAX: usize = 800;

/// Replaces the middle of a long message.
const CUT: &str = " […] ";

/// How many characters to keep at the end.
const TAIL: usize = 300;

/// The gRPC code of an error kind.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InProgress => Code::Aborted,
        ErrorKind::Unavailable | ErrorKind::Disk => Code::Unavailable,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Precondition | ErrorKind::Changed => Code::FailedPrecondition,
        ErrorKind::Conflict => Code::AlreadyExists,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

/// Whether kubelet treats this code as final.
pub fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// The name of a code, spelled as in the logs and metrics of other CSI components.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// The status of an error: its kind's code, and its message on one line of limited length.
pub(super) fn of(error: &Error) -> Status {
    Status::new(code(error.kind()), readable(error.message()))
}

/// Escapes the message of an answer to NodePublishVolume. kubelet uses it as the
/// format of an event (`Eventf(…, err.Error())`), which would turn `(29 %)` into
/// `(29 %!)(MISSING)`; `%%` becomes `%`. The length limit applies to the escaped
/// message, and no pair is cut.
pub(super) fn for_event(status: &Status) -> Status {
    let message: Vec<char> = status.message().chars().collect();
    let shortened = shorten(&message, |c| if c == '%' { 2 } else { 1 });
    Status::new(status.code(), shortened.replace('%', "%%"))
}

/// The answer of a method that this driver does not implement, with the reason.
pub(super) fn unimplemented(method: &str, why: &str) -> Status {
    Status::unimplemented(readable(&format!("{method} is not implemented: {why}")))
}

/// Formats a message as one line of at most [`MESSAGE_MAX`] characters.
fn readable(message: &str) -> String {
    let line: Vec<char> = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shorten(&line, |_| 1)
}

/// Shortens a line to [`MESSAGE_MAX`], where each character counts as its width.
/// The beginning says what was attempted and the end what to do next, so the
/// middle is cut.
fn shorten(line: &[char], width: impl Fn(char) -> usize) -> String {
    let fitting = |chars: &mut dyn Iterator<Item = &char>, most: usize| {
        let mut used = 0;
        chars
            .take_while(|&&c| {
                used += width(c);
                used <= most
            })
            .count()
    };
    if fitting(&mut line.iter(), MESSAGE_MAX) == line.len() {
        return line.iter().collect();
    }
    let tail = fitting(&mut line.iter().rev(), TAIL);
    let head = fitting(&mut line.iter(), MESSAGE_MAX - TAIL - CUT.chars().count());
    let (head, tail) = (&line[..head], &line[line.len() - tail..]);
    head.iter().copied().chain(CUT.chars()).chain(tail.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's table: error kind, code, whether final for kubelet.
    const TABLE: [(ErrorKind, Code, bool); 14] = [
        (ErrorKind::InProgress, Code::Aborted, false),
        (ErrorKind::Unavailable, Code::Unavailable, false),
        (ErrorKind::Disk, Code::Unavailable, false),
        (ErrorKind::NoSpace, Code::ResourceExhausted, false),
        (ErrorKind::Invalid, Code::InvalidArgument, true),
        (ErrorKind::NotFound, Code::NotFound, true),
        (ErrorKind::Unauthenticated, Code::Unauthenticated, true),
        (ErrorKind::Denied, Code::PermissionDenied, true),
        (ErrorKind::Precondition, Code::FailedPrecondition, true),
        (ErrorKind::Changed, Code::FailedPrecondition, true),
        (ErrorKind::Conflict, Code::AlreadyExists, true),
        (ErrorKind::OutOfRange, Code::OutOfRange, true),
        (ErrorKind::Corrupt, Code::DataLoss, true),
        (ErrorKind::Internal, Code::Internal, true),
    ];

    #[test]
    fn every_error_kind_has_the_code_of_the_contract() {
        for (kind, code, last) in TABLE {
            let status = of(&Error::new(kind, "sentence"));
            assert_eq!((status.code(), status.message()), (code, "sentence"), "{kind:?}");
            assert_eq!(is_final(status.code()), last, "{kind:?}");
        }
    }

    #[test]
    fn codes_are_spelled_as_other_csi_components_spell_them() {
        for number in 0..=16 {
            let code = Code::from_i32(number);
            let expected = match code {
                Code::Ok => "OK".to_owned(),
                Code::Cancelled => "Canceled".to_owned(),
                other => format!("{other:?}"),
            };
            assert_eq!(name(code), expected);
        }
    }

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_remedy() {
        let long = format!("downloading {}; ask the administrator", "ä".repeat(2000));
        let status = of(&Error::internal(long));
        assert_eq!(status.message().chars().count(), MESSAGE_MAX);
        assert!(status.message().starts_with("downloading ä"));
        assert!(status.message().contains(CUT));
        assert!(status.message().ends_with("ä; ask the administrator"));

        let exact = "x".repeat(MESSAGE_MAX);
        assert_eq!(of(&Error::internal(exact.clone())).message(), exact);
    }

    #[test]
    fn a_percent_sign_survives_kubelets_event_format() {
        let status = for_event(&Status::aborted("half: 50 %, of \"100% sure\""));
        assert_eq!(status.code(), Code::Aborted);
        // kubelet's Sprintf turns each pair into one sign.
        assert_eq!(status.message().replace("%%", "%"), "half: 50 %, of \"100% sure\"");
        assert_eq!(status.message().matches('%').count(), 4);
    }

    #[test]
    fn a_message_is_cut_after_its_percent_signs_are_doubled() {
        let sent = |message: String| for_event(&of(&Error::internal(message)));
        for (message, least) in [
            ("%".repeat(2000), MESSAGE_MAX - 2),
            (format!("downloading {}; ask", "50 % ".repeat(190)), MESSAGE_MAX - 2),
            (format!("{}{}", "x".repeat(399), "%".repeat(401)), MESSAGE_MAX - 2),
            (format!("{}%", "x".repeat(MESSAGE_MAX - 2)), MESSAGE_MAX),
            (format!("{}%", "x".repeat(MESSAGE_MAX - 1)), MESSAGE_MAX - 2),
        ] {
            let status = sent(message);
            let length = status.message().chars().count();
            assert!((least..=MESSAGE_MAX).contains(&length), "{length}: {}", status.message());
            let single = status.message().replace("%%", "");
            assert!(!single.contains('%'), "half a pair: {}", status.message());
        }
        let status = sent(format!("downloading {}; ask the administrator", "% ".repeat(500)));
        assert!(status.message().starts_with("downloading %% "), "{}", status.message());
        assert!(status.message().ends_with("; ask the administrator"), "{}", status.message());
    }

    #[test]
    fn a_message_is_one_line_without_control_characters() {
        let status = of(&Error::invalid("a\nb\x1b[31m\0\u{85}c"));
        assert_eq!(status.message(), "a b [31m  c");
    }
}
