//! The oci CLI's config file: INI as Python's `ConfigParser` reads it, without interpolation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::StorageError;
use crate::text;

/// The section whose values every profile inherits.
const DEFAULT: &str = "DEFAULT";

/// A parsed config file: profiles by name.
pub(crate) struct ConfigFile {
    path: PathBuf,
    profiles: BTreeMap<String, BTreeMap<String, String>>,
}

/// One profile, with what it inherits from `[DEFAULT]`.
#[derive(Default)]
pub(crate) struct Profile(BTreeMap<String, String>);

impl Profile {
    /// A value that is present and not blank; keys are lower case.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl ConfigFile {
    /// Reads and parses the file. Errors name the file and the line, and never quote
    /// it, since any line may hold a passphrase.
    pub(crate) fn read(path: &Path) -> Result<Self, StorageError> {
        let text = text::read(path).map_err(|why| {
            StorageError::config(format!("reading the config file {}", path.display()), why)
                .with_remedy(
                    "create it with `oci setup config`, or name another with --config-file",
                )
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, StorageError> {
        let mut profiles: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut section: Option<String> = None;
        let mut last_key: Option<String> = None;
        for (index, raw) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let refuse = |why: &str| {
                StorageError::config(format!("{}:{}", path.display(), index + 1), why.to_owned())
            };
            let line = raw.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if raw.starts_with([' ', '\t'])
                && let (Some(section), Some(key)) = (&section, &last_key)
            {
                let value = profiles.entry(section.clone()).or_default().entry(key.clone());
                let value = value.or_default();
                value.push('\n');
                value.push_str(line);
                continue;
            }
            if let Some(header) = line.strip_prefix('[') {
                let (name, _) = header
                    .split_once(']')
                    .ok_or_else(|| refuse("a profile's name needs a closing ]"))?;
                if name != DEFAULT && profiles.contains_key(name) {
                    return Err(refuse("this profile is in the file already"));
                }
                profiles.entry(name.to_owned()).or_default();
                (section, last_key) = (Some(name.to_owned()), None);
                continue;
            }
            let section = section
                .as_ref()
                .ok_or_else(|| refuse("a value comes before the first [profile]"))?;
            let (key, value) = line
                .split_once(['=', ':'])
                .ok_or_else(|| refuse("expected [profile], key=value or a # comment"))?;
            let key = key.trim().to_ascii_lowercase();
            let values = profiles.entry(section.clone()).or_default();
            if values.insert(key.clone(), value.trim().to_owned()).is_some() {
                return Err(refuse("this key is in the profile already"));
            }
            last_key = Some(key);
        }
        Ok(Self { path: path.to_owned(), profiles })
    }

    /// Whether the profile itself has this key, and does not inherit it.
    pub(crate) fn has_own(&self, profile: &str, key: &str) -> bool {
        let own = self.profiles.get(profile).and_then(|values| values.get(key));
        own.is_some_and(|value| !value.is_empty())
    }

    /// The profile of this name with `[DEFAULT]`, or an error that lists the profiles.
    pub(crate) fn profile(&self, name: &str) -> Result<Profile, StorageError> {
        let own = self.profiles.get(name).ok_or_else(|| {
            let there: Vec<_> = self.profiles.keys().map(String::as_str).collect();
            StorageError::config(
                format!("looking for the profile {name} in {}", self.path.display()),
                format!("there are: {}", there.join(", ")),
            )
        })?;
        let mut values = self.profiles.get(DEFAULT).cloned().unwrap_or_default();
        values.extend(own.clone());
        Ok(Profile(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile, StorageError> {
        ConfigFile::parse(Path::new("config"), text)
    }

    #[test]
    fn a_profile_inherits_from_default_and_overrides_it() {
        let file =
            parse("[DEFAULT]\nregion = iad\ntenancy=t\n\n# other\n[dev]\nREGION: phx\n").unwrap();
        let dev = file.profile("dev").unwrap();
        assert_eq!((dev.get("region"), dev.get("tenancy")), (Some("phx"), Some("t")));
        assert_eq!(file.profile("DEFAULT").unwrap().get("region"), Some("iad"));
    }

    #[test]
    fn a_value_keeps_its_hashes_semicolons_and_equal_signs() {
        let file = parse("[DEFAULT]\npass_phrase=p#w;x=y %(z)s\n").unwrap();
        assert_eq!(file.profile("DEFAULT").unwrap().get("pass_phrase"), Some("p#w;x=y %(z)s"));
    }

    #[test]
    fn an_indented_line_continues_the_value_and_a_blank_value_is_absent() {
        let file = parse("[DEFAULT]\nkey_content=a\n  b\nuser=\n").unwrap();
        let profile = file.profile("DEFAULT").unwrap();
        assert_eq!((profile.get("key_content"), profile.get("user")), (Some("a\nb"), None));
    }

    #[test]
    fn errors_name_file_and_line_and_quote_nothing() {
        for (text, line) in [
            ("user=secret\n", 1),
            ("[DEFAULT]\n\nsecret\n", 3),
            ("[DEFAULT\n", 1),
            ("[DEFAULT]\na=1\nA=secret\n", 3),
            ("[a]\n[a]\n", 2),
        ] {
            let error = parse(text).err().expect(text).to_string();
            assert!(error.starts_with(&format!("config:{line}: ")), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_missing_profile_is_reported_with_those_that_exist() {
        let error = parse("[a]\n[b]\n").unwrap().profile("c").err().unwrap().to_string();
        assert!(error.contains("profile c") && error.contains("a, b"), "{error}");
    }
}
