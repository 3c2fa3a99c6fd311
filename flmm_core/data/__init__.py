"""Images, phrases and masks: readers and writers. Nothing here tokenises."""
