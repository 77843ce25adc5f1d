variable "tenancy_id" {
  type        = string
  description = "OCID of the tenancy. Dynamic groups belong to the tenancy, whatever compartment their members are in."

  validation {
    condition     = can(regex("^ocid1\\.tenancy\\.", var.tenancy_id))
    error_message = "The tenancy_id has to be the OCID of a tenancy: ocid1.tenancy.…"
  }
}

variable "compartment_id" {
  type        = string
  description = "OCID of the bucket's compartment. The policy for reading the bucket belongs to it too."

  validation {
    condition     = can(regex("^ocid1\\.(compartment|tenancy)\\.", var.compartment_id))
    error_message = "The compartment_id has to be the OCID of a compartment (or of the tenancy, its root): ocid1.compartment.…"
  }
}

variable "region" {
  type        = string
  description = "Region of the bucket by its full name, such as eu-frankfurt-1. The statement for a key of your own names it."

  validation {
    condition     = can(regex("^[a-z]+(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "The region has to be a full name such as eu-frankfurt-1, not a short code such as fra."
  }
}

variable "bucket_name" {
  type        = string
  description = "Name of the bucket. Every statement of the module is for this bucket alone."

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{1,256}$", var.bucket_name))
    error_message = "The bucket_name has to be 1 to 256 letters, digits, dots, underscores and hyphens."
  }
}

variable "create_bucket" {
  type        = bool
  description = "Create the bucket. With false it exists already, and only the right to read it is created."
  default     = true
}

variable "kms_key_id" {
  type        = string
  description = "OCID of a Vault key of your own that encrypts the bucket; empty is Oracle's key."
  default     = ""

  validation {
    condition     = var.kms_key_id == "" || can(regex("^ocid1\\.key\\.", var.kms_key_id))
    error_message = "The kms_key_id has to be the OCID of a Vault key: ocid1.key.…"
  }
}

variable "kms_compartment_id" {
  type        = string
  description = "OCID of that key's compartment; empty is the bucket's."
  default     = ""

  validation {
    condition     = var.kms_compartment_id == "" || can(regex("^ocid1\\.(compartment|tenancy)\\.", var.kms_compartment_id))
    error_message = "The kms_compartment_id has to be the OCID of a compartment: ocid1.compartment.…"
  }
}

variable "node_compartment_id" {
  type        = string
  description = "OCID of the compartment whose compute instances, the worker nodes, may read the bucket; empty creates no dynamic group."
  default     = ""

  validation {
    condition     = var.node_compartment_id == "" || can(regex("^ocid1\\.(compartment|tenancy)\\.", var.node_compartment_id))
    error_message = "The node_compartment_id has to be the OCID of a compartment: ocid1.compartment.…"
  }
}

variable "node_tag" {
  type        = object({ namespace = string, key = string, value = string })
  description = "A defined tag that the instances must have in addition, so that not every instance of the compartment may read the bucket."
  default     = null

  validation {
    condition = var.node_tag == null ? true : alltrue([
      can(regex("^[A-Za-z0-9_-]+$", var.node_tag.namespace)),
      can(regex("^[A-Za-z0-9_-]+$", var.node_tag.key)),
      can(regex("^[^']+$", var.node_tag.value)),
    ])
    error_message = "The node_tag has to be a defined tag: namespace and key of letters, digits, underscores and hyphens, and a value without quotes."
  }
}

variable "dynamic_group_name" {
  type        = string
  description = "Name of the dynamic group."
  default     = "oci-model-csi-nodes"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{1,100}$", var.dynamic_group_name))
    error_message = "The dynamic_group_name has to be 1 to 100 letters, digits, dots, underscores and hyphens."
  }
}

variable "workloads" {
  type        = list(object({ cluster_id = string, namespace = string, service_account = string }))
  description = "Service accounts of enhanced OKE clusters whose pods read with their own identity (auth: oke_workload_identity)."
  default     = []

  validation {
    condition     = alltrue([for one in var.workloads : can(regex("^ocid1\\.cluster\\.", one.cluster_id))])
    error_message = "Each cluster_id of workloads has to be the OCID of a cluster: ocid1.cluster.…"
  }

  validation {
    condition = alltrue([
      for one in var.workloads : can(regex("^[a-z0-9-]+$", one.namespace)) && can(regex("^[a-z0-9.-]+$", one.service_account))
    ])
    error_message = "Each entry of workloads has to name one Kubernetes namespace and one service account, without wildcards."
  }
}

variable "reader_group" {
  type        = string
  description = "Name of a users' group that may read the bucket with API keys, for fetch on a laptop; empty is none."
  default     = ""

  validation {
    condition     = var.reader_group == "" || can(regex("^[A-Za-z0-9._-]+$", var.reader_group))
    error_message = "The reader_group has to be the name of a group in the default identity domain."
  }
}

variable "uploader_group" {
  type        = string
  description = "Name of a users' group that may upload models and delete them; empty is none."
  default     = ""

  validation {
    condition     = var.uploader_group == "" || can(regex("^[A-Za-z0-9._-]+$", var.uploader_group))
    error_message = "The uploader_group has to be the name of a group in the default identity domain."
  }
}

variable "policy_name" {
  type        = string
  description = "Name of the policy; that for the key is called the same with -key."
  default     = "oci-model-csi"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{1,96}$", var.policy_name))
    error_message = "The policy_name has to be 1 to 96 letters, digits, dots, underscores and hyphens."
  }
}

variable "freeform_tags" {
  type        = map(string)
  description = "Free-form tags of everything that the module creates."
  default     = {}
}
