//! The information table: who may find out what by which channel. Each cell compares the answer
//! about a secret model with the answer about one that does not exist. The table of
//! docs/security.md sums it up.
//!
//! To add a requester, add a [`Who`] to one of the worlds: that of the rules and that of service
//! accounts here, those of pods' Secrets in `permission_table/secrets.rs`.

mod secrets;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::answers::{Answer, CHANNELS, Question, World};
use crate::support::commands::Commands;
use crate::support::driver::Setup;
use crate::support::models::{BUCKET, MIB};
use crate::support::run::{end_to_end_within, eventually, figure};
use crate::support::workloads::{self, HOUR, caller, sent};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule, Source};

/// Buckets that only the administrator may know of, and one that does not exist.
const VAULT: &str = "vault-of-falcon";
const NO_VAULT: &str = "vault-of-nothing";

/// The pod that downloads, holds and mounts the secret models.
const HOLDER: &str = "holder-of-falcon";

/// The object whose download lasts for the whole test.
const ENDLESS: &str = "endless.bin";

/// No answer about anything else may have one of these words.
const SECRETS: [&str; 3] = ["falcon", HOLDER, VAULT];

/// A file that was read, among the requests and in the metrics.
const READ: &str = "Get 206, ";
const READ_COUNTED: &str =
    "oci_model_csi_object_storage_requests_total{operation=\"GetObject\",status=\"206\"} ";

/// What is true of a prefix: the facts that the channels must not reveal.
const FACTS: [(&str, &str, &str); 8] = [
    ("none", BUCKET, "falcon/none/"),
    ("stored", BUCKET, "falcon/stored/"),
    ("cached", BUCKET, "falcon/cached/"),
    ("held", BUCKET, "falcon/held/"),
    ("loading", BUCKET, "falcon/loading/"),
    ("damaged", BUCKET, "falcon/damaged/"),
    ("vault", VAULT, "falcon/any/"),
    ("no vault", NO_VAULT, "falcon/any/"),
];

/// A requester.
struct Who {
    /// Its Kubernetes namespace, and its name in the table.
    team: &'static str,
    asks: Asks,
    may: May,
}

#[derive(Clone, Copy, PartialEq)]
enum Asks {
    Pod,
    Claim,
}

/// What a requester may find out about the secret models.
#[derive(Clone, Copy, PartialEq)]
enum May {
    Nothing,
    /// The same; but which bucket its pre-authenticated request is of is no secret to itself.
    NothingInItsBucket,
    /// Its own identity may list the bucket: which names exist is no secret, and that Object
    /// Storage is asked about them neither. What is cached is one.
    List,
    /// Its own identity may read some files of each model: only what is cached is a secret.
    ReadSome,
    /// It is allowed the models: the control, for which the table must find differences.
    Everything,
}

/// Ways to ask about a prefix: a name, what is added to the prefix, and attributes.
type How = (&'static str, &'static str, Vec<(&'static str, String)>);

/// The ways; `revision` is one that is cached.
fn ways(revision: &str) -> Vec<How> {
    let one = |key: &'static str, value: &str| vec![(key, value.to_owned())];
    vec![
        ("Always", "", vec![]),
        ("IfNotPresent", "", one("pullPolicy", "IfNotPresent")),
        ("Never", "", one("pullPolicy", "Never")),
        ("revision", "", one("revision", revision)),
        ("revision, Never", "", [one("revision", revision), one("pullPolicy", "Never")].concat()),
        ("filter that matches", "", one("include", "*.bin")),
        ("filter that matches nothing", "", one("include", "*.gguf")),
        (
            "filter, IfNotPresent",
            "",
            [one("include", "*.x"), one("pullPolicy", "IfNotPresent")].concat(),
        ),
        ("name of an object", "config.json/", vec![]),
        ("directory below", "shards/", one("pullPolicy", "IfNotPresent")),
        ("misspelt", "shrads/", vec![]),
    ]
}

/// The result of a world.
#[derive(Default)]
struct Tally {
    /// Words that no answer may have, beside [`SECRETS`].
    secrets: Vec<String>,
    cells: usize,
    leaks: Vec<String>,
    /// Differences that the control may see.
    seen: usize,
    times: BTreeMap<String, Vec<Duration>>,
}

impl Tally {
    /// Compares two answers, channel by channel.
    fn compare(&mut self, cell: &str, may: May, answer: &Answer, baseline: &Answer) {
        for (channel, (shown, expected)) in
            CHANNELS.iter().zip(answer.shown.iter().zip(&baseline.shown))
        {
            // Claims have no stats.
            if shown.is_empty() && expected.is_empty() {
                continue;
            }
            let differs = shown != expected;
            if may == May::Everything {
                self.seen += usize::from(differs);
                continue;
            }
            self.cells += 1;
            if differs {
                self.leaks.push(format!("{cell}, {channel}:\n  {shown}\n  {expected}"));
            }
            self.words(&format!("{cell}, {channel}"), shown);
        }
    }

    /// Looks for names in a text that must have none.
    fn words(&mut self, cell: &str, text: &str) {
        self.cells += 1;
        let mut secrets = SECRETS.into_iter().chain(self.secrets.iter().map(String::as_str));
        if let Some(word) = secrets.find(|word| text.contains(*word)) {
            self.leaks.push(format!("{cell}: {word:?} is in {text}"));
        }
    }

    fn time(&mut self, who: &str, fact: &str, took: Duration) {
        self.times.entry(format!("{who}, {fact}")).or_default().push(took);
    }

    #[track_caller]
    fn report(mut self, world: &str) {
        for (of, times) in &mut self.times {
            times.sort();
            let median = times[times.len() / 2].as_secs_f64() * 1000.0;
            figure(format_args!("{world}: median answer to {of}: {median:.1} ms"));
        }
        let (leaks, cells) = (self.leaks.len(), self.cells);
        figure(format_args!("{world}: leaks {leaks} of {cells} cells"));
        assert!(self.leaks.is_empty(), "{}", self.leaks.join("\n"));
        assert!(self.seen > 10, "the control sees differences: {}", self.seen);
    }
}

/// Puts a model of two directories.
fn put_model(store: &LocalStore, bucket: &str, prefix: &str, size: usize) {
    for (name, size) in [("config.json", 20), ("model.bin", size), ("shards/one.bin", size / 2)] {
        store.put(bucket, &format!("{prefix}{name}"), vec![7; size]).unwrap();
    }
}

/// Fills a store and the cache of its driver with the facts. Returns the cached revision.
async fn arrange(world: &World) -> String {
    let store = &world.store;
    for (size, prefix) in [(3 << 20, "stored"), (1 << 20, "cached"), (2 << 20, "held")] {
        put_model(store, BUCKET, &format!("falcon/{prefix}/"), size);
    }
    put_model(store, VAULT, "falcon/any/", 1000);
    put_model(store, BUCKET, "falcon/damaged/", 1000);
    store.put(BUCKET, "falcon/damaged/../passwd", "x").unwrap();
    put_model(store, BUCKET, "falcon/loading/", 1000);
    let endless = Source::Synthetic { size: 8 * MIB, seed: 1 };
    let name = format!("falcon/loading/{ENDLESS}");
    store.put_with(BUCKET, &name, endless, PutOptions::default()).unwrap();
    // Fast enough not to be requested again in the meantime.
    let slow = Rule::new(Action::ConnectionBandwidth { bytes_per_sec: 4096 });
    store.faults().add(slow.operation(Operation::Get).object(format!("*{ENDLESS}")));

    let of = |fact: &str| Question::new(BUCKET, &format!("falcon/{fact}/"), &[]);
    let cached = world.pod(HOLDER, &of("cached"));
    cached.publish().await.unwrap();
    cached.unpublish().await.unwrap();
    world.pod(HOLDER, &of("held")).publish().await.unwrap();
    world.pod(HOLDER, &of("loading")).publish().await.unwrap_err();
    eventually("the download runs", HOUR, async || (sent(store) > 0).then_some(())).await;

    let commands = Commands::of(&world.driver.setup);
    let shown = commands.text(&["ls"]).await;
    for (word, what) in [("falcon/cached/", "a model"), ("falcon/loading/", "a download")] {
        assert!(shown.contains(word), "the administrator sees {what}: {shown}");
    }
    let name = format!("oci://{BUCKET}@{}/falcon/cached/", store.namespace());
    let cached = commands.json(&["inspect", &name]).await;
    cached[0]["revision"].as_str().unwrap().to_owned()
}

/// Asks everything for one requester, and compares the answers.
async fn ask_all(world: &World, who: &Who, revision: &str, tally: &mut Tally) {
    // Where it may read a part, Object Storage is asked again and again, which takes seconds.
    let few = if who.may == May::ReadSome { 4 } else { usize::MAX };
    for (how, below, more) in ways(revision).into_iter().take(few) {
        let mut answers = BTreeMap::new();
        for (fact, bucket, prefix) in FACTS {
            // Claims choose no bucket, and the control would cache what is only stored.
            let is_asked = match who.may {
                May::Everything => ["none", "cached", "held"].contains(&fact),
                May::List => bucket == BUCKET,
                May::ReadSome => ["none", "stored", "cached", "held", "loading"].contains(&fact),
                May::Nothing | May::NothingInItsBucket => true,
            };
            if !is_asked {
                continue;
            }
            let more: Vec<(&str, &str)> = more.iter().map(|(k, v)| (*k, v.as_str())).collect();
            let question = Question::new(bucket, &format!("{prefix}{below}"), &more);
            let mut answer = match who.asks {
                Asks::Pod => world.answer(who.team, &question).await,
                Asks::Claim => world.answer_to_claim(who.team, &question).await,
            };
            if who.may == May::ReadSome {
                // Files are asked for side by side, and the first refusal ends that: whether the
                // answer for another one is counted before is chance.
                for allowed in [READ, READ_COUNTED] {
                    answer.shown = answer.shown.map(|text| text.replace(allowed, ""));
                }
            }
            tally.time(who.team, fact, answer.took);
            answers.insert(fact, answer);
        }
        for (fact, answer) in &answers {
            let mut baseline = answers["none"].clone();
            if *fact == "vault" && who.may == May::NothingInItsBucket {
                baseline = answers["no vault"].clone();
            } else if *fact == "no vault" && who.may == May::NothingInItsBucket {
                continue;
            } else if *fact != "none" && who.may == May::ReadSome {
                baseline = answers["stored"].clone();
            } else if *fact != "none" && who.may == May::List {
                let stored = &answers["stored"];
                baseline.shown[2].clone_from(&stored.shown[2]);
                baseline.shown[3].clone_from(&stored.shown[3]);
            }
            let cell = format!("{} asks by {how} about {fact}", who.team);
            tally.compare(&cell, who.may, answer, &baseline);
        }
    }
}

/// What any pod that reaches the port, or may read nodes, can see.
async fn look_around(world: &World, tally: &mut Tally) {
    tally.words("the page of metrics", &world.driver.metrics().await);
    for path in ["/status", "/cache", "/cache/models"] {
        let status = world.driver.post_to_metrics(path, "{}").await;
        tally.words(&format!("{path} at the port of metrics"), &status.to_string());
        assert!(status == 404 || status == 405, "{path}: {status}");
    }
    // Once at the start, and again after the first model.
    eventually("the labels are compared", Duration::from_secs(40), async || {
        (world.label_checks() >= 2).then_some(())
    })
    .await;
    tally.words("the node's labels", &world.labels().join(" "));
}

fn of_rules(scratch: &Path, store: &LocalStore) -> Setup {
    let config = format!(
        "cache: {{minFree: 1MiB, minFreeInodes: 0%, maxSize: 32MiB}}\npolicy:\n  rules:\n  \
         - {{namespaces: ['*'], buckets: ['*'], prefixes: [open/], allow: true}}\n  \
         - {{namespaces: [denied], buckets: ['*'], prefixes: [''], allow: false}}\n  \
         - {{namespaces: [beside], buckets: ['*'], prefixes: [part/named/, part/empty/], allow: true}}\n  \
         - {{namespaces: [{HOLDER}, control], buckets: ['*'], prefixes: [''], allow: true}}\n"
    );
    Setup::new(scratch, store).with_config(&config)
}

#[test]
fn nothing_discloses_a_model_that_the_rules_deny() {
    end_to_end_within(Duration::from_secs(400), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for bucket in [BUCKET, VAULT] {
            put_model(&store, bucket, "open/model/", 1000);
        }
        let setup = of_rules(scratch, &store);
        let mut world = World::start(store, setup, scratch).await;
        world.elsewhere = ENDLESS;
        let revision = arrange(&world).await;
        let open = world.pod("denied-not", &Question::new(BUCKET, "open/model/", &[]));
        open.publish().await.unwrap();
        let mut tally = Tally::default();
        for (team, asks, may) in [
            ("denied", Asks::Pod, May::Nothing),
            ("beside", Asks::Pod, May::Nothing),
            ("denied", Asks::Claim, May::Nothing),
            ("control", Asks::Pod, May::Everything),
        ] {
            ask_all(&world, &Who { team, asks, may }, &revision, &mut tally).await;
        }
        ask_beside(&world, &mut tally).await;
        look_around(&world, &mut tally).await;
        eventually("the label of what is open to all", Duration::from_secs(40), async || {
            world.labels().iter().any(|key| key.contains("model.model.")).then_some(())
        })
        .await;
        tally.report("rules");
    });
}

/// A pod and a claim that are allowed some prefixes ask what lies beside those: secrets in one
/// bucket, and nothing in the other.
async fn ask_beside(world: &World, tally: &mut Tally) {
    world.store.put(VAULT, "part/named", "an object, and not below what is allowed").unwrap();
    put_model(&world.store, VAULT, "part/falcon/", 1000);
    put_model(&world.store, BUCKET, "part/unnamed/", 1000);
    let large = Source::Synthetic { size: 64 * MIB, seed: 1 };
    world.store.put_with(BUCKET, "open/large/x.bin", large, PutOptions::default()).unwrap();
    for (how, prefix) in [
        ("the name of an object", "part/named/"),
        ("an empty prefix", "part/empty/"),
        ("a misspelt one", "part/named/x/"),
        ("a model of its own", "open/model/"),
    ] {
        for asks in [Asks::Pod, Asks::Claim] {
            let ask = async |bucket: &str| {
                let question = Question::new(bucket, prefix, &[]);
                match asks {
                    Asks::Pod => world.answer("beside", &question).await,
                    Asks::Claim => world.answer_to_claim("beside", &question).await,
                }
            };
            // What is downloaded first is cached then.
            let (first, second) = (ask(VAULT).await, ask(BUCKET).await);
            if prefix != "open/model/" {
                let cell = format!("beside asks by {how} about what is beside it");
                tally.compare(&cell, May::Nothing, &first, &second);
            }
            tally.words(&format!("beside asks by {how}"), &first.shown.join(" "));
        }
    }
    let short = world.pod("beside", &Question::new(BUCKET, "open/large/", &[]));
    let (code, text) = short.refused().await;
    assert_eq!(code, tonic::Code::ResourceExhausted, "{text}");
    tally.words("who holds the space", &text);
    assert!(text.contains("pods of other namespaces"), "{text}");
}

#[test]
fn nothing_discloses_a_model_that_a_pods_own_identity_may_not_read() {
    end_to_end_within(Duration::from_secs(400), async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for bucket in [BUCKET, VAULT, "another-bucket"] {
            store.put(bucket, "x", "x").unwrap();
        }
        store.allow(&caller("stranger"), "another-bucket");
        store.allow_inspect(&caller("lister"), BUCKET);
        store.withhold(&caller("half"), BUCKET, "falcon/*/shards/*");
        let setup = workloads::setup(scratch, &store);
        let mut world = World::start(store, setup, scratch).await;
        world.elsewhere = ENDLESS;
        let revision = arrange(&world).await;
        let mut tally = Tally::default();
        for (team, may) in [
            ("stranger", May::Nothing),
            ("lister", May::List),
            ("half", May::ReadSome),
            ("control", May::Everything),
        ] {
            ask_all(&world, &Who { team, asks: Asks::Pod, may }, &revision, &mut tally).await;
        }
        look_around(&world, &mut tally).await;
        tally.report("service accounts");
    });
}
