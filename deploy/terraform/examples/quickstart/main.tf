# A bucket that the worker nodes of the same compartment may read, for docs/quickstart.md:
#
#   terraform init
#   terraform apply -var tenancy_id=ocid1.tenancy.… -var compartment_id=ocid1.compartment.… -var region=eu-frankfurt-1
#
# OpenTofu takes the same files: write tofu in place of terraform.

terraform {
  required_version = ">= 1.3"

  required_providers {
    oci = {
      source  = "oracle/oci"
      version = ">= 5.0"
    }
  }
}

variable "tenancy_id" {
  type        = string
  description = "OCID of the tenancy."
}

variable "compartment_id" {
  type        = string
  description = "OCID of the compartment that has the worker nodes, and gets the bucket."
}

variable "region" {
  type        = string
  description = "Region of the bucket, such as eu-frankfurt-1."
}

variable "home_region" {
  type        = string
  description = "The tenancy's home region, if the bucket is in another one: rights are changed there."
  default     = ""
}

variable "uploader_group" {
  type        = string
  description = "Name of your users' group, if its members are no administrators of the compartment."
  default     = ""
}

# The configuration file of the oci CLI, ~/.oci/config, says who you are.
provider "oci" {
  region = var.region
}

provider "oci" {
  alias  = "home"
  region = var.home_region == "" ? var.region : var.home_region
}

module "models" {
  source    = "../.."
  providers = { oci = oci, oci.home = oci.home }

  tenancy_id          = var.tenancy_id
  compartment_id      = var.compartment_id
  node_compartment_id = var.compartment_id
  region              = var.region
  bucket_name         = "ai-model-cache"
  uploader_group      = var.uploader_group
}

output "uri" {
  description = "The bucket as the commands of oci-model-csi take it."
  value       = module.models.uri
}

output "statements" {
  description = "What was allowed."
  value       = module.models.statements
}
