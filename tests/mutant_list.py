"""The seeded bugs of tests/mutants.py: one row each, with the tests that must catch it."""

from dataclasses import dataclass

CORE, PIPELINE = "edc_ray/core/", "edc_ray/pipeline/"


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` occurs once in `file`. tests: files or nodes, as pytest takes them, separated by spaces."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS: list[Mutant] = [
    # --- data ---
    Mutant(
        "val is inside fit", CORE + "data/splits.py",
        "return (~held).nonzero().flatten(),", "return torch.arange(len(held)),",
        "tests/test_data.py",
    ),
    Mutant(
        "pixels are divided by the deviation before the mean is taken off", CORE + "data/pixels.py",
        "(images.float() / 255 - _column(mean, images)) / _column(std, images)",
        "images.float() / 255 / _column(std, images) - _column(mean, images)",
        "tests/test_data.py",
    ),
    # --- initial images ---
    Mutant(
        "RDED keeps the hardest crops", CORE + "init.py",
        "argsort(stable=True)[: needed(cfg)]", "argsort(stable=True, descending=True)[: needed(cfg)]",
        "tests/test_init.py",
    ),
    Mutant(
        "RDED tiles the best crops side by side", CORE + "init.py",
        "crops.unflatten(0, (factor, factor, -1))",
        "crops.unflatten(0, (-1, factor, factor)).permute(1, 2, 0, 3, 4, 5)",
        "tests/test_init.py",
    ),
    Mutant(
        "RDED keeps the first crop of an image", CORE + "init.py",
        "easiest = loss.argmin(1)", "easiest = loss.argmin(1) * 0",
        "tests/test_init.py",
    ),
    Mutant(
        "small crops are scored in a corner", CORE + "init.py",
        "sides = (less // 2, less - less // 2)", "sides = (0, less)",
        "tests/test_init.py",
    ),
    Mutant(
        "images are drawn with replacement where they should not be", CORE + "init.py",
        "if cfg.replacement:", "if not cfg.replacement:",
        "tests/test_init.py",
    ),
    Mutant(
        "the observers score images as the class that is drawn next", PIPELINE + "condense.py",
        "cross_entropies, models, sources[label],", "cross_entropies, models, sources[label - 1],",
        "tests/test_pipeline.py::test_observers_choose_initial_images_from_the_training_part",
    ),
    # --- statistics and matching ---
    Mutant(
        "mean and variance of the patches are exchanged", CORE + "stats.py",
        "_spread(mean, patch)[:, None, None]))",
        "_spread(mean, patch)[:, None, None])[::-1])",
        "tests/test_stats.py",
    ),
    Mutant(
        "pooled class variance leaves out what lies between images", CORE + "stats.py",
        "(var + square - mean.square()).clamp_min(0)", "var",
        "tests/test_stats.py",
    ),
    Mutant(
        "the moments of each image change the images", CORE + "stats.py",
        "room[: len(part)].copy_(part)", "part",
        "tests/test_stats.py",
    ),
    Mutant(
        "patches are cut off instead of resized", CORE + "stats.py",
        "math.ceil(side / patch) * patch for", "max(1, side // patch) * patch for",
        "tests/test_stats.py",
    ),
    Mutant(
        "class weight and global weight are exchanged", CORE + "matching.py",
        "(1 - a) * far + a * near", "a * far + (1 - a) * near",
        "tests/test_matching.py",
    ),
    Mutant(
        "running statistics without bias correction (B5)", CORE + "matching.py",
        "average / (1 - cfg.momentum**visits) if cfg.bias_correction else average", "average",
        "tests/test_matching.py",
    ),
    Mutant(
        "the straight-through gradient is scaled by the momentum", CORE + "matching.py",
        "value + (now - now.detach())", "value + (1 - cfg.momentum) * (now - now.detach())",
        "tests/test_matching.py",
    ),
    Mutant(
        "the last layer has the weight of the pixels", CORE + "matching.py",
        "weight[:1] = cfg.first_multiplier", "weight[-1:] = cfg.first_multiplier",
        "tests/test_matching.py",
    ),
    Mutant(
        "class targets of the patches are always exchanged (B2)", CORE + "matching.py",
        'reversed(pair) if swap_patch and kind == "patch"', 'reversed(pair) if kind == "patch"',
        "tests/test_matching.py",
    ),
    Mutant(
        "per-class terms are not weighted by p(c)", CORE + "matching.py",
        "torch.where(share > 0, share * near, 0)", "torch.where(share > 0, near, 0)",
        "tests/test_matching.py",
    ),
    Mutant(
        "BatchNorm is matched to the data, not to its running statistics", CORE + "matching.py",
        "return module.running_mean[None].double().cpu(), module.running_var[None].double().cpu()", "pass",
        "tests/test_matching.py",
    ),
    Mutant(
        "the average over batches does not weigh them by their images", CORE + "stats.py",
        "(pair * owner.bincount()[:, None]).sum(1)", "pair.mean(1) * len(z)",
        "tests/test_stats.py::test_the_average_over_batches_weighs_them_by_their_images",
    ),
    # --- recovery ---
    Mutant(
        "weights of observers change the size of the loss", CORE + "recover/problem.py",
        "weight * len(given) / sum(given)", "weight",
        "tests/test_observers.py::test_every_gradient_equals_the_one_by_hand",
    ),
    Mutant(
        "the verifier looks one iteration late (B7)", CORE + "recover/loop.py",
        "t % verifier_every(", "(t + 1) % verifier_every(",
        "tests/test_observers.py::test_the_verifier_looks_at_every_hundredth_iteration",
    ),
    Mutant(
        "groups take their images class by class instead of in order", CORE + "recover/problem.py",
        "image // self.ipc for image", "image % self.ipc for image",
        "tests/test_recover.py::test_labels_are_class_major",
    ),
    Mutant(
        "each image has a crop of its own where the group should share one", CORE + "recover/loss.py",
        'if cfg.crop == "batch" else', 'if cfg.crop != "batch" else',
        "tests/test_recover.py::test_a_group_shares_one_crop_of_its_own",
    ),
    Mutant(
        "BatchNorm layers drop out too", CORE + "recover/loss.py",
        "(torch.stack(draws) >= rate) | stays", "torch.stack(draws) >= rate",
        "tests/test_observers.py::test_convolutions_drop_out_as_often_as_asked_and_batchnorms_never",
    ),
    Mutant(
        "the crop grows from crop_min to crop_min_start (CDA backwards)", CORE + "recover/loss.py",
        "0.5 * (1 + math.cos(math.pi * iteration", "0.5 * (1 - math.cos(math.pi * iteration",
        "tests/test_observers.py::test_the_smallest_crop_follows_a_half_cosine",
    ),
    Mutant(
        "flatness is KL of the averaged images from the current ones", CORE + "recover/loss.py",
        "(ours.exp() * (ours - theirs)).sum(1)", "(theirs.exp() * (theirs - ours)).sum(1)",
        "tests/test_recover.py::test_logit_flatness_is_the_divergence_from_the_averaged_images",
    ),
    Mutant(
        "the learning rate is one iteration ahead", CORE + "recover/loop.py",
        "math.cos(math.pi * t /", "math.cos(math.pi * (t + 1) /",
        "tests/test_recover.py::test_the_learning_rate_follows_the_cosine",
    ),
    Mutant(
        "images leave the range of pixels", CORE + "recover/loop.py",
        "(1 - problem.mean) / problem.std", "(2 - problem.mean) / problem.std",
        "tests/test_recover.py::test_images_stay_in_the_unit_range_and_reach_its_ends",
    ),
    Mutant(
        "the first observer has every turn", CORE + "recover/loop.py",
        "[state.turns % count]", "[0 * state.turns % count]",
        "tests/test_recover.py::test_observers_take_turns",
    ),
    Mutant(
        "SAM goes downhill", CORE + "recover/loop.py",
        "(state.images.detach() + step)", "(state.images.detach() - step)",
        "tests/test_recover.py::test_sam_climbs_by_rho_along_the_pixel_gradient_of_each_image",
    ),
    Mutant(
        "averaged images follow the iterates without delay", CORE + "recover/loop.py",
        "torch.lerp(state.images.detach(), state.averaged, cfg.flatness.beta)",
        "torch.lerp(state.averaged, state.images.detach(), cfg.flatness.beta)",
        "tests/test_recover.py::test_averaged_images_follow_the_iterates",
    ),
    Mutant(
        "groups do not take over running statistics without reset (B6)", CORE + "recover/chain.py",
        "saved, before = None, self._state", "saved, before = None, None",
        "tests/test_observers.py::test_official_groups_take_over_the_running_statistics_and_the_turn",
    ),
    Mutant(
        "images are truncated where they should be rounded (B16)", CORE + "storage.py",
        'levels.round() if cfg.format == "uint8" else levels', "levels",
        "tests/test_storage.py",
    ),
    # --- views ---
    Mutant(
        "the partners of CutMix come from other batches", CORE + "views.py",
        "torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)", "0",
        "tests/test_views.py",
    ),
    Mutant(
        "rows and columns of the CutMix box are exchanged", CORE + "views.py",
        "rows[:, :, None] & columns[:, None, :]", "rows[:, None, :] & columns[:, :, None]",
        "tests/test_views.py",
    ),
    Mutant(
        "MixUp gives the partner the share of the image", CORE + "views.py",
        "torch.lerp(other, crops, own[", "torch.lerp(crops, other, own[",
        "tests/test_views.py",
    ),
    Mutant(
        "a last image alone is a batch", CORE + "views.py",
        "full + (rest > 1)", "full + (rest > 0)",
        "tests/test_views.py",
    ),
    Mutant(
        "crops are flipped when they should not be", CORE + "views.py",
        "at = torch.where(flip[:, None], at.flip(1), at)", "at = torch.where(flip[:, None], at, at.flip(1))",
        "tests/test_views.py",
    ),
    Mutant(
        "RandAugment gives images the operations of others", CORE + "randaugment.py",
        "torch.cat(done)[order.argsort()", "torch.cat(done)[order",
        "tests/test_randaugment.py",
    ),
    Mutant(
        "RandAugment knows no negative magnitudes", CORE + "randaugment.py",
        "-amount if magnitude < 0 else amount", "amount",
        "tests/test_randaugment.py",
    ),
    # --- labels ---
    Mutant(
        "labels are made without the CutMix of the view", CORE + "relabel.py",
        "mixed = views.apply(views.concat(drawn), images, pixels)",
        "mixed = images[views.concat(drawn).ids]",
        "tests/test_relabel.py",
    ),
    Mutant(
        "labelling observers look at their batch by default", CORE + "relabel.py",
        'if cfg.teacher_bn == "batch":', 'if cfg.teacher_bn != "batch":',
        "tests/test_relabel.py",
    ),
    Mutant(
        "all observers label, whoever was chosen", PIPELINE + "judge.py",
        "for name in exp.relabel.observers or exp.squeeze.observers]", "for name in exp.squeeze.observers]",
        "tests/test_judge.py::test_every_field_changes_the_student",
    ),
    # --- losses and schedules ---
    Mutant(
        "the cosine loss has the wrong sign", CORE + "losses.py",
        "1 - functional.cosine_similarity(logits, soft)", "1 + functional.cosine_similarity(logits, soft)",
        "tests/test_train.py",
    ),
    Mutant(
        "KL goes in the other direction", CORE + "losses.py",
        "functional.kl_div(ours, theirs,", "functional.kl_div(theirs, ours,",
        "tests/test_train.py",
    ),
    Mutant(
        "the cross-entropy has weight 1", CORE + "losses.py",
        "+ cfg.ce_weight * entropy", "+ entropy",
        "tests/test_train.py",
    ),
    Mutant(
        "schedules are one epoch ahead", CORE + "schedules.py",
        "(cfg, epoch / cfg.epochs, losses)", "(cfg, (epoch + 1) / cfg.epochs, losses)",
        "tests/test_schedules.py",
    ),
    Mutant(
        "SSRS falls to half of where the cosine was", CORE + "schedules.py",
        "cos(cfg, cfg.fall, losses) * (1 - share)", "cos(cfg, cfg.fall, losses) * (1 - share) / 2",
        "tests/test_schedules.py",
    ),
    Mutant(
        "multistep steps one epoch late", CORE + "schedules.py",
        "share >= milestone", "share > milestone",
        "tests/test_schedules.py",
    ),
    Mutant(
        "zeta speeds up", CORE + "schedules.py",
        "math.cos(math.pi * share / cfg.zeta)", "math.cos(math.pi * share * cfg.zeta)",
        "tests/test_schedules.py",
    ),
    # --- training ---
    Mutant(
        "weight decay on biases and norms", CORE + "fit.py",
        '{"params": kept, "weight_decay": 0.0}', '{"params": kept, "weight_decay": weight_decay}',
        "tests/test_train.py",
    ),
    Mutant(
        "averaged weights without bias correction", CORE + "train.py",
        "v / (1 - self.rate**steps) if self.corrected else v", "v",
        "tests/test_train.py",
    ),
    Mutant(
        "the average is taken before the step", CORE + "train.py",
        "self.optimizer.step()\n        self.averages.update()",
        "self.averages.update()\n        self.optimizer.step()",
        "tests/test_train.py",
    ),
    Mutant(
        "mixed hard labels give the image the partner's share", CORE + "train.py",
        "torch.lerp(own[view.partner.to(own.device)], own,",
        "torch.lerp(own, own[view.partner.to(own.device)],",
        "tests/test_train.py",
    ),
    Mutant(
        "students are judged in training mode", CORE + "train.py",
        "        self.model.eval()\n        try:", "        try:",
        "tests/test_train.py",
    ),
    Mutant(
        "observers are trained without augmentation", CORE + "squeeze.py",
        "pixels = views.augment(images[ids], cfg.augment, rng)", "pixels = images[ids]",
        "tests/test_train.py::test_an_observer_equals_plain_torch_by_hand",
    ),
    Mutant(
        "an observer of an earlier epoch has the end of the schedule", CORE + "squeeze.py",
        "multiplier(cfg, epoch)",
        "multiplier(cfg, epoch + cfg.epochs - (cfg.checkpoint_epoch or cfg.epochs))",
        "tests/test_train.py::test_an_observer_of_an_earlier_epoch_has_had_the_whole_schedule",
    ),
    # --- models ---
    Mutant(
        "ShuffleNet does not shuffle", CORE + "models/small.py",
        "torch.stack((self.passed(left), self.transformed(right)), dim=2).flatten(1, 2)",
        "torch.cat((self.passed(left), self.transformed(right)), dim=1)",
        "tests/test_models.py::test_a_shuffle_unit_interleaves_what_passes_and_what_is_transformed",
    ),
    Mutant(
        "BatchNorms are not hooked", CORE + "models/layers.py",
        "if isinstance(m, nn.Conv2d | nn.BatchNorm2d)", "if isinstance(m, nn.Conv2d)",
        "tests/test_models.py",
    ),
    # --- the stages and their names ---
    Mutant(
        "test is read where val was asked for", PIPELINE + "worker.py",
        "if split.val == 0:", "if split.val >= 0:",
        "tests/test_pipeline.py::test_accuracies_say_on_which_split_they_were_read",
    ),
    Mutant(
        "any stage may open val and test", PIPELINE + "worker.py",
        "if task.stage not in graph.JUDGED:", "if task.stage in ():",
        "tests/test_evaluate.py::test_stages_that_make_images_cannot_open_val_or_test",
    ),
    Mutant(
        "a student that took part counts as unseen", "edc_ray/evaluation.py",
        ' and row["seen"] == "unseen"', "",
        "tests/test_evaluate.py::test_one_command_gives_every_protocol_and_student",
    ),
    Mutant(
        "a large hard-label recovery is good", "edc_ray/ddranking.py",
        "weight * ior - (1 - weight) * hlr", "weight * ior + (1 - weight) * hlr",
        "tests/test_ddranking.py::test_the_label_robust_score_by_hand",
    ),
    Mutant(
        "a maximum over looks at test is the accuracy", PIPELINE + "judge.py",
        '"accuracy": reports[-1][1]', '"accuracy": max(value for _, value in reports)',
        "tests/test_judge.py",
    ),
    Mutant(
        "keys do not hold the quirks of recover", PIPELINE + "stages.py",
        'return "recover", *_RECOVER_QUIRKS, "seed", "precision"', 'return "recover", "seed", "precision"',
        "tests/test_pipeline.py::test_a_field_changes_the_keys_of_its_readers_and_their_descendants_only",
    ),
    Mutant(
        "keys do not hold the views of students with hard labels", PIPELINE + "judge.py",
        "views = _VIEWS if hard(experiment) else ()", "views: tuple[str, ...] = ()",
        "tests/test_pipeline.py::test_names_hold_only_what_the_experiment_uses",
    ),
    Mutant(
        "keys do not hold the content of raw files", PIPELINE + "graph.py",
        "if files is not None:", "if files is None:",
        "tests/test_pipeline.py::test_other_data_change_every_key",
    ),
    Mutant(
        "keys do not hold the version of the stage", PIPELINE + "graph.py",
        '{"stage": stage, "version": row.version}', '{"stage": stage}',
        "tests/test_pipeline.py::test_a_raised_version_changes_the_stage_and_its_descendants",
    ),
    # --- applications ---
    Mutant(
        "a memory's labels are those of other classes", CORE + "applications/continual.py",
        "each[:, seen]", "each[:, : len(seen)]",
        "tests/test_applications.py::test_the_labels_of_a_memory_are_those_of_the_classes_seen",
    ),
    # --- search.inner ---
    Mutant(
        "a synthesis that fails is tried n times", "edc_ray/reuse.py",
        "set(states) - {TrialState.RUNNING} != {TrialState.FAIL}", "states",
        "tests/test_reuse.py::test_a_synthesis_whose_trials_fail_is_not_tried_n_times",
    ),
    Mutant(
        "knobs that the synthesis waits for are drawn anew", "edc_ray/reuse.py",
        "found |= set(search[path].when) if path in found else set()", "found |= set()",
        "tests/test_reuse.py::test_what_the_synthesis_waits_for_belongs_to_it",
    ),
    # --- the store ---
    Mutant(
        "a damaged file is read", "edc_ray/artifacts/store.py",
        "if not hashlib.sha256(data).hexdigest().startswith(file.sha):", "if not file.sha:",
        "tests/test_artifacts.py::test_a_damaged_unit_is_never_read",
    ),
]  # fmt: skip
