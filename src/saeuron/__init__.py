"""Concept unlearning for text-to-image diffusion models with sparse autoencoders."""

from saeuron.activations import Activations, ActivationStream, Sampling, activations
from saeuron.concepts import ConceptProfile, profile, scores, top_features
from saeuron.hooks import Record, candidate_hookpoints, edited, recorded
from saeuron.images import ImageRecord, ImageRequest, generate
from saeuron.sae import SaeConfig, SparseAutoencoder
from saeuron.sparse import SparseCode
from saeuron.train import TrainConfig, Trainer, TrainStats, train
from saeuron.unlearn import UnlearningPlan, erase, plan, unlearned

__version__ = "0.1.0"

__all__ = [
    "ActivationStream",
    "Activations",
    "ConceptProfile",
    "ImageRecord",
    "ImageRequest",
    "Record",
    "SaeConfig",
    "Sampling",
    "SparseAutoencoder",
    "SparseCode",
    "TrainConfig",
    "TrainStats",
    "Trainer",
    "UnlearningPlan",
    "activations",
    "candidate_hookpoints",
    "edited",
    "erase",
    "generate",
    "plan",
    "profile",
    "recorded",
    "scores",
    "top_features",
    "train",
    "unlearned",
]
