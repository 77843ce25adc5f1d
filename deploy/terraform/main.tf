# What the driver needs in a tenancy: a bucket, an identity for the nodes or the
# pods, and the right to read this one bucket. docs/iam.md explains each statement.

locals {
  kms_compartment_id = var.kms_compartment_id == "" ? var.compartment_id : var.kms_compartment_id

  of_bucket = "in compartment id ${var.compartment_id} where target.bucket.name='${var.bucket_name}'"

  matching_conditions = concat(
    ["instance.compartment.id = '${var.node_compartment_id}'"],
    var.node_tag == null ? [] : ["tag.${var.node_tag.namespace}.${var.node_tag.key}.value = '${var.node_tag.value}'"],
  )
  matching_rule = "ALL {${join(", ", local.matching_conditions)}}"

  # `read objects` covers listing: it contains `inspect objects`.
  nodes = [
    for group in oci_identity_dynamic_group.nodes : "Allow dynamic-group ${group.name} to read objects ${local.of_bucket}"
  ]
  workloads = [
    for one in var.workloads : join("", [
      "Allow any-user to read objects in compartment id ${var.compartment_id} where all {request.principal.type='workload', ",
      "request.principal.cluster_id='${one.cluster_id}', request.principal.namespace='${one.namespace}', ",
      "request.principal.service_account='${one.service_account}', target.bucket.name='${var.bucket_name}'}",
    ])
  ]
  readers = var.reader_group == "" ? [] : ["Allow group ${var.reader_group} to read objects ${local.of_bucket}"]
  uploaders = var.uploader_group == "" ? [] : [
    "Allow group ${var.uploader_group} to read buckets ${local.of_bucket}",
    "Allow group ${var.uploader_group} to manage objects ${local.of_bucket}",
  ]
  statements = concat(local.nodes, local.workloads, local.readers, local.uploaders)

  # Object Storage itself uses the key, for every reader of the bucket.
  key_statements = var.kms_key_id == "" ? [] : [
    "Allow service objectstorage-${var.region} to use keys in compartment id ${local.kms_compartment_id} where target.key.id='${var.kms_key_id}'",
  ]
}

data "oci_objectstorage_namespace" "this" {
  compartment_id = var.tenancy_id
}

resource "oci_objectstorage_bucket" "models" {
  count = var.create_bucket ? 1 : 0

  compartment_id = var.compartment_id
  namespace      = data.oci_objectstorage_namespace.this.namespace
  name           = var.bucket_name
  access_type    = "NoPublicAccess"
  storage_tier   = "Standard"
  kms_key_id     = var.kms_key_id == "" ? null : var.kms_key_id
  freeform_tags  = var.freeform_tags

  # Object Storage refuses a key that it may not use yet.
  depends_on = [oci_identity_policy.key]
}

resource "oci_identity_dynamic_group" "nodes" {
  provider = oci.home
  count    = var.node_compartment_id == "" ? 0 : 1

  compartment_id = var.tenancy_id
  name           = var.dynamic_group_name
  description    = "Worker nodes whose oci-model-csi driver reads the bucket ${var.bucket_name}"
  matching_rule  = local.matching_rule
  freeform_tags  = var.freeform_tags
}

resource "oci_identity_policy" "read" {
  provider = oci.home
  count    = length(local.statements) == 0 ? 0 : 1

  compartment_id = var.compartment_id
  name           = var.policy_name
  description    = "Who may use the models of the bucket ${var.bucket_name}"
  statements     = local.statements
  freeform_tags  = var.freeform_tags
}

resource "oci_identity_policy" "key" {
  provider = oci.home
  count    = length(local.key_statements) == 0 ? 0 : 1

  compartment_id = local.kms_compartment_id
  name           = "${var.policy_name}-key"
  description    = "Lets Object Storage use the key of the bucket ${var.bucket_name}"
  statements     = local.key_statements
  freeform_tags  = var.freeform_tags
}
