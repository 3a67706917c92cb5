"""A package, so that pytest puts this folder not on the path, where its folder vllm would pass for the library vllm."""
