"""Ops that are frozen on purpose: every axis they touch stays whole, for the reason given here."""

from __future__ import annotations

from graphprune.rules.registry import frozen

frozen("its body is a graph of its own, which is not entered", "sequence_map")
frozen(
    "sequences and optional values have no axes to follow",
    *"concat_from_sequence optional optional_get_element optional_has_element sequence_at sequence_construct".split(),
    *"sequence_empty sequence_erase sequence_insert sequence_length split_to_sequence".split(),
)
frozen("the size of its result depends on the data", "compress", "non_max_suppression", "non_zero", "unique")
frozen("it draws random numbers, a different number for a different size", "bernoulli", "multinomial")
frozen(
    "it draws random numbers, a different number for a different size",
    *"random_normal random_normal_like random_uniform random_uniform_like".split(),
)
frozen("its result counts positions", "range", "size", "eye_like", "max_unpool")
frozen("its axis is a signal or a spectrum: the order of positions counts", "dft", "stft", "mel_weight_matrix")
frozen("a window function: the order of positions counts", "blackman_window", "hamming_window", "hann_window")
frozen("its axes are coordinates", "affine_grid", "det", "image_decoder")
frozen(
    "it works on text",
    *"regex_full_match string_concat string_normalizer string_split tf_idf_vectorizer".split(),
)
frozen("a training loss over classes", "negative_log_likelihood_loss", "softmax_cross_entropy_loss")
frozen("it may change the width of an element, and with it the last axis", "bit_cast")
frozen("its value is made when the model is read", "constant")
frozen(
    "ONNX Runtime has no kernel for it on the CPU, so that no cut of it could be proved",
    *"com.microsoft.packed_attention com.microsoft.packed_multi_head_attention com.microsoft.nhwc_conv".split(),
    *"com.microsoft.decoder_masked_self_attention com.microsoft.longformer_attention".split(),
    *"com.microsoft.mul_integer com.microsoft.q_linear_reduce_mean com.microsoft.reduce_sum_integer".split(),
)
frozen(
    "ONNX Runtime has laid its channels out in blocks for this machine (ORT_ENABLE_ALL): prune the file it was made of",
    *(f"com.microsoft.nchwc.{op}" for op in "average_pool conv global_average_pool global_max_pool max_pool".split()),
    *(f"com.microsoft.nchwc.{op}" for op in "reorder_input reorder_output upsample".split()),
)
frozen(
    "its four-bit numbers are no integers, and lie in one row",
    "com.microsoft.mat_mul_bnb4",
    "com.microsoft.mat_mul_fp_q4",
)
frozen("which blocks of the sequence a head sees depends on its number", "com.microsoft.sparse_attention")
