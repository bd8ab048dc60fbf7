"""The card's blocks of code: how each library loads a coded model.

Fenced by tildes, which no name in a card holds unescaped.
"""

from coin_hf.erasure.betas import rows_of
from coin_hf.records.result import ResultRecord


def inputs_of(result: ResultRecord) -> str:
    """Name what the networks classify.

    Args:
        result: The result.

    Returns:
        `images` or `texts`.
    """
    return "texts" if result.task else "images"


def _others(result: ResultRecord, repo_id: str) -> str:
    """Show how plain libraries load a coded model from a subfolder."""
    if len(rows_of(result.betas)) == 1:
        return ""
    if result.library == "timm":  # its hf-hub: names do not allow subfolders
        return f"""
from huggingface_hub import snapshot_download

folder = snapshot_download("{repo_id}")  # the others lie in subfolders
another = timm.create_model(f"local-dir:{{folder}}/coded-1", pretrained=True).eval()
"""
    auto = f"AutoModelFor{'Sequence' if result.task else 'Image'}Classification"
    return f"""
from transformers import {auto}

another = {auto}.from_pretrained("{repo_id}", subfolder="coded-1")
"""


def usage(result: ResultRecord, repo_id: str) -> str:
    """Render how timm, transformers and coin-hf load and run a coded model.

    Args:
        result: The result.
        repo_id: The Hub id by which the code loads it.

    Returns:
        Markdown.
    """
    if result.task:
        return _text_usage(result, repo_id)
    blocks = []
    if result.library == "timm":
        blocks.append(f"""With timm:
~~~python
import timm

model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
{_others(result, repo_id)}~~~""")
    blocks.append(f'''With transformers:
~~~python
from PIL import Image
from transformers import pipeline

classify = pipeline("image-classification", model="{repo_id}")
classify(Image.new("RGB", (64, 64)))  # your image
{_others(result, repo_id) if result.library == "transformers" else ""}~~~''')
    missing = result.experts[-1].name
    blocks.append(f'''Answering for a missing expert with [coin-hf](https://pypi.org/project/coin-hf/), here '{missing}':
~~~python
from coin_hf import CodedEnsemble
from PIL import Image

ensemble = CodedEnsemble.from_pretrained("{repo_id}", experts=True)
x = ensemble.preprocess(Image.new("RGB", (64, 64))).unsqueeze(0)  # your image
logits = ensemble(x, missing=[{len(result.experts) - 1}])  # one tensor for each expert, the missing one decoded
~~~''')
    return "\n\n".join(blocks)


def _text_usage(result: ResultRecord, repo_id: str) -> str:
    missing = result.experts[-1].name
    return f'''With transformers:
~~~python
from transformers import AutoModelForSequenceClassification, pipeline

classify = pipeline("text-classification", model="{repo_id}")
classify("your text")
model = AutoModelForSequenceClassification.from_pretrained("{repo_id}").eval()  # the network alone
{_others(result, repo_id)}~~~

Answering for a missing expert with [coin-hf](https://pypi.org/project/coin-hf/), here '{missing}':
~~~python
from coin_hf import CodedEnsemble

ensemble = CodedEnsemble.from_pretrained("{repo_id}", experts=True)
x = ensemble.preprocess(["your text", "and another"])  # a list is a batch; a pair of texts is a tuple
logits = ensemble(x, missing=[{len(result.experts) - 1}])  # one tensor for each expert, the missing one decoded
~~~'''
