import pytest
import torch
from architectures import tiny_config, tiny_model
from tiny_training import fixed_rows, tiny_classifier, trainer

from decodner_hf.training.optimizers import MuonWithAdamW


def test_one_step_is_muons_for_matrices_and_adamws_for_the_rest():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 8), "one": torch.nn.Linear(8, 6, bias=True)})
    weight, bias = model["one"].weight.detach().clone(), model["one"].bias.detach().clone()
    optimizer = MuonWithAdamW(model, 0.01, momentum=0.9, weight_decay=0.1)
    gradient = torch.randn_like(weight)
    model["one"].weight.grad, model["one"].bias.grad = gradient.clone(), torch.ones_like(bias)
    optimizer.step()
    step = (weight * (1 - 0.01 * 0.1) - model["one"].weight.detach()) / 0.01
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    singular = torch.diagonal(left.T @ step @ right.T) / (0.2 * 8**0.5)  # of the orthogonalised momentum
    assert singular.min() > 0.5
    assert singular.max() < 1.3
    assert torch.allclose(model["one"].bias, bias - 0.01, atol=1e-5)  # AdamW's first step is the learning rate
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


class HeadOfAnotherName(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = tiny_model(tiny_config("llama", tie_word_embeddings=False))
        self.backbone.answers = self.backbone.lm_head
        del self.backbone.lm_head
        self.backbone.get_output_embeddings = lambda: self.backbone.answers


def test_the_head_and_embeddings_are_left_to_adamw_whatever_they_are_called():
    model = HeadOfAnotherName()
    muon, _ = MuonWithAdamW(model, 0.01).parts
    marked = {id(p) for group in muon.param_groups for p in group["params"]}
    matrices = {name for name, parameter in model.named_parameters() if id(parameter) in marked}
    others = {name for name, parameter in model.named_parameters() if parameter.dim() == 2} - matrices
    assert others == {"backbone.model.embed_tokens.weight", "backbone.answers.weight"}


@pytest.mark.parametrize("when", ["before loading", "after loading"])
def test_a_scheduler_sets_the_rate_of_both(when):
    model = tiny_model(tiny_config("llama"))
    optimizer = MuonWithAdamW(model, 1.0)
    if when == "after loading":
        optimizer.load_state_dict(MuonWithAdamW(model, 1.0).state_dict())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.25)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.25}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def run(folder, model, **settings):
        optimizers = MuonWithAdamW(model, 1e-3), None
        return trainer(model, fixed_rows(epochs=3), folder, optimizers=optimizers, max_steps=5, **settings)

    whole, again = tiny_classifier(), tiny_classifier()
    run(tmp_path, whole, save_strategy="steps", save_steps=2).train()
    run(tmp_path, again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, parameter), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other), name
