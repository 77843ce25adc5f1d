terraform {
  required_version = ">= 1.3"

  required_providers {
    oci = {
      source  = "oracle/oci"
      version = ">= 5.0"
      # Dynamic groups and policies can be changed in the tenancy's home region alone.
      configuration_aliases = [oci.home]
    }
  }
}
