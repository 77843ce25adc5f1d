//! Criterion benches of the parts that are pure functions: `make bench-pure`.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use oci_model_csi::download::crc32c_of_both;
use oci_model_csi::model::{
    BucketName, Filters, ListedObject, Manifest, ModelSource, ModelUri, NamespaceName,
    ObjectListing, Prefix, Selected, TreeLimits,
};
use oci_model_csi::oci::key::KeyPair;
use oci_model_csi::oci::sign::{DateHeader, Request, sign};
use oci_model_csi::weights::check_header;
use oci_model_csi_md5_lanes::md5_lanes::{Lanes, Md5Stream, Piece};

/// Bytes of a stream that are hashed at a time: what the download engine reads.
const PIECE: usize = 64 << 10;

/// Objects of a large listing.
const OBJECTS: usize = 10_000;

/// Tensors of a shard of a large model.
const TENSORS: u64 = 1000;

fn prefix() -> Prefix {
    Prefix::parse("models/llama3-70b/").expect("a prefix")
}

/// MD5 of as many streams as there are lanes, for each instruction set of this CPU.
fn md5_lanes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("md5");
    for lanes in Lanes::available() {
        let content = vec![vec![0x5a; PIECE]; lanes.count()];
        let mut streams = vec![Md5Stream::new(); lanes.count()];
        let bytes = u64::try_from(PIECE * lanes.count()).expect("a small number");
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(lanes.name(), |bencher| {
            bencher.iter(|| {
                let pairs = streams.iter_mut().zip(&content);
                let mut pieces: Vec<_> = pairs.map(|(s, bytes)| Piece::new(s, bytes)).collect();
                lanes.update(&mut pieces);
            });
        });
    }
}

/// One span of the download engine more.
fn crc32c(criterion: &mut Criterion) {
    criterion.bench_function("crc32c of both, 1 MiB", |bencher| {
        bencher.iter(|| crc32c_of_both(black_box(0x1234_5678), black_box(0x9abc_def0), 1 << 20));
    });
    criterion.bench_function("crc32c of both, 1 GiB less 1", |bencher| {
        bencher
            .iter(|| crc32c_of_both(black_box(0x1234_5678), black_box(0x9abc_def0), (1 << 30) - 1));
    });
}

fn patterns(criterion: &mut Criterion) {
    let filters = Filters::parse(Some("*.safetensors,*.json,tokenizer*"), Some("original/*,*.bin"));
    let filters = filters.expect("patterns");
    criterion.bench_function("patterns, 5 for a name", |bencher| {
        let mut selection = filters.selection();
        bencher.iter(|| {
            // The budget of a listing is used up by as many names as a bench compares.
            if let Ok(has) = selection.has(black_box("sub/model-00017-of-00030.safetensors")) {
                return has;
            }
            selection = filters.selection();
            false
        });
    });
}

fn uris(criterion: &mut Criterion) {
    criterion.bench_function("URI of a model", |bencher| {
        bencher.iter(|| {
            ModelUri::parse(black_box("oci://ai-model-cache@mytenancy/models/llama3-70b/"))
        });
    });
}

fn listed() -> Vec<ListedObject> {
    let object = |n| ListedObject {
        name: format!("models/llama3-70b/{:02}/model-{n:05}-of-10000.safetensors", n / 100),
        size: 5 << 30,
        etag: format!("5ab1f3c2-8d1e-4c6f-9a55-{n:012}"),
        md5: Some("1B2M2Y8AsgTpgAmY7PhCfg==".to_owned()),
        archived: false,
    };
    (0..OBJECTS).map(object).collect()
}

/// From the objects of a listing to the manifest and its key, which has the revision.
fn manifest(criterion: &mut Criterion) {
    let source = ModelSource {
        location: "us-ashburn-1".to_owned(),
        namespace: NamespaceName::parse("mytenancy").expect("a namespace"),
        bucket: BucketName::parse("ai-model-cache").expect("a bucket"),
        prefix: prefix(),
    };
    let filters = Filters::parse(None, None).expect("no patterns");
    criterion.bench_function("listing of 10,000 objects to a manifest", |bencher| {
        let manifest = |objects: Vec<ListedObject>| {
            let mut listing = ObjectListing::new(prefix());
            listing.push(objects).expect("objects under the prefix");
            let selected = Selected::of(&listing, &filters, &TreeLimits::default());
            let tree = selected.expect("names that files can have").expect("objects").tree();
            Manifest::new(source.clone(), "", tree).key()
        };
        bencher.iter_batched(listed, manifest, BatchSize::LargeInput);
    });
}

fn safetensors(criterion: &mut Criterion) {
    let mut header = "{".to_owned();
    for n in 0..TENSORS {
        let (begin, end) = (n * 1000, (n + 1) * 1000);
        let comma = if n == 0 { "" } else { "," };
        write!(
            header,
            "{comma}\"model.layers.{n}.self_attn.q_proj.weight\":{{\"dtype\":\"F16\",\
             \"shape\":[500],\"data_offsets\":[{begin},{end}]}}"
        )
        .expect("a string takes all");
    }
    header.push('}');
    let length = u64::try_from(header.len()).expect("a small number");
    let mut file = length.to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    let size = 8 + length + TENSORS * 1000;
    assert_eq!(check_header(&file[..], size).expect("it is in memory"), None);
    criterion.bench_function("safetensors header of 1,000 tensors", |bencher| {
        bencher.iter(|| check_header(black_box(&file[..]), size));
    });
}

fn signing(criterion: &mut Criterion) {
    let key = KeyPair::generate().expect("a key");
    let request = Request {
        method: "GET",
        target: "/n/mytenancy/b/ai-model-cache/o/models%2Fllama3-70b%2Fmodel-00017.safetensors",
        host: Some("objectstorage.us-ashburn-1.oraclecloud.com"),
        date: "Thu, 05 Jan 2014 21:31:40 GMT",
        date_header: DateHeader::Date,
        body: None,
    };
    criterion.bench_function("signature of a request, RSA of 2048 bits", |bencher| {
        bencher.iter(|| sign(black_box(&request), "tenancy/user/fingerprint", &key));
    });
}

criterion_group!(benches, md5_lanes, crc32c, patterns, uris, manifest, safetensors, signing);
criterion_main!(benches);
