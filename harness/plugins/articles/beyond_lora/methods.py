"""The methods that the article compares."""

ADAPTERS = ("lora", "qlora", "dora")
TUNED = ("full", *ADAPTERS, "galore")
