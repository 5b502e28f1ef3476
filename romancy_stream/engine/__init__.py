"""The sans-IO core: a batch of messages in, one `Commit` value out. No clock, no database, no Kafka, no await
of anything but workflow code."""
