"""The kernel: spores, mailboxes, the Reef and its agents."""
