"""The examples of the guide, each an app that `romancy worker examples.NAME:app` runs."""
