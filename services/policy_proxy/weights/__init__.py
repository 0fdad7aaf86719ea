"""Updates of the policy while it is in use."""
