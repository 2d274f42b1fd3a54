"""Fine-tune a Hugging Face directory by LoRA while a stage lies, and open the result with plain peft. Needs holdfast[lora].

python finetune_lora.py path/to/model       without a path: a small model that is trained here first
"""

import sys
import tempfile
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM

from holdfast import Experiment

SHAPE = {"stages": 4, "micro_batches": 2, "micro_batch_size": 2, "seq_length": 32}


def main(model: str | None, folder: Path) -> None:
    if model is None:
        Experiment(model="gpt2:layers=4,width=32,heads=2", **SHAPE, steps=20, out=str(folder / "base")).run()
        model = str(folder / "base" / "model")
    tuning = {"model": model, **SHAPE, "lora_rank": 4, "learning_rate": 1e-2, "steps": 10}
    clean = Experiment(**tuning).run()
    result = Experiment(**tuning, attack="sign-flip,rate=0.7", out=str(folder / "tuned")).run()
    print(f"{result.detected} of {result.attacked_claims} lies detected; liars: {result.blamed_workers}")
    print("same adapters as without a liar:", result.weights_digest == clean.weights_digest)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder / "tuned" / "model")
    print(f"{sum(p.numel() for name, p in adapted.named_parameters() if 'lora' in name):,} parameters of adapters")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else None, Path(scratch))
