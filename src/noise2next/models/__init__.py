"""One file a paper. `base` holds what they share: the contract, the address, the artifact."""
