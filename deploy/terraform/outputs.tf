output "namespace" {
  description = "The tenancy's Object Storage namespace."
  value       = data.oci_objectstorage_namespace.this.namespace
}

output "uri" {
  description = "The bucket as the commands of oci-model-csi take it; a model's prefix follows."
  value       = "oci://${var.bucket_name}@${data.oci_objectstorage_namespace.this.namespace}/"
}

output "matching_rule" {
  description = "The dynamic group's matching rule; empty without a dynamic group."
  value       = var.node_compartment_id == "" ? "" : local.matching_rule
}

output "statements" {
  description = "All statements of both policies, to review them or to enter them by hand."
  value       = concat(local.statements, local.key_statements)
}
