"""One call of the policy, from the request to the durable record."""
