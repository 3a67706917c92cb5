"""A result file of peft's method comparison, as its project publishes them."""

from __future__ import annotations

RUN = {
    "run_info": {
        "created_at": "2026-07-15T05:41:18+00:00",
        "total_time": 1000.0,
        "experiment_name": "lora/llama-3.2-3B-rank32",
        "peft_branch": "main",
        "train_config": {
            "model_id": "meta-llama/Llama-3.2-3B",
            "dtype": "bfloat16",
            "max_seq_length": 768,
            "batch_size": 4,
            "batch_size_eval": 50,
            "max_steps": 500,
            "eval_steps": 250,
            "seed": 0,
            "grad_norm_clip": 1.0,
            "optimizer_type": "AdamW",
            "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1},
            "lr_scheduler": "cosine",
            "generation_kwargs": {"max_length": 800},
        },
        "peft_config": {
            "peft_type": "LORA",
            "peft_version": "0.19",
            "r": 32,
            "lora_alpha": 64,
            "target_modules": ["v_proj", "q_proj"],
            "use_dora": False,
        },
        "error_msg": "",
    },
    "train_info": {
        "accelerator_memory_reserved_avg": 14_000,
        "accelerator_memory_max": 22_000,
        "accelerator_memory_reserved_99th": 20_000,
        "train_time": 300.0,
        "file_size": 36_000,
        "num_trainable_params": 9_000,
        "num_total_params": 3_000_000,
        "status": "success",
        "metrics": [
            {"step": 250, "valid accuracy": 0.3, "train time": 100.0, "tokens / sec": 1000.0},
            {"step": 500, "valid accuracy": 0.4, "train time": 50.0, "tokens / sec": 4000.0},
            {"step": 500, "test accuracy": 631 / 1319, "train total tokens": 300_000, "forgetting": 0.05},
        ],
    },
    "meta_info": {
        "model_info": {"sha": "13af"},
        "dataset_info": {"metamath": {"sha": "aa4f"}, "gsm8k": {"sha": "7403"}},
        "package_info": {
            "transformers-version": "5.13.1",
            "peft-version": "0.19.2",
            "peft-commit-hash": "d787f51bbaa196862733ed53c1b7def75b49ab29",
            "datasets-version": "4.2.0",
            "bitsandbytes-version": "0.49.2",
            "torch-version": "2.13.0",
        },
        "system_info": {"system": "Linux", "machine": "x86_64", "accelerator": "NVIDIA L40S"},
    },
}
