"""One case a file: ``rows(run)`` yields what it predicts or measures, a dictionary a variant."""

# in order of importance, with the seconds that each is planned to take on an H200: on the matrices of a model,
OF_A_MODEL = {
    "optimizer_step": 60,
    "transform": 30,
    "training_step": 60,
    "memory": 15,
    "launch": 15,
}
# and on matrices of their own
FIXED = {
    "products": 50,
    "model_svd_gpu": 60,
    "svd_gpu": 130,
    "svd_accuracy": 80,
    "small_svd_gpu": 60,
    "rescale_gpu": 10,
    "second_product_gpu": 60,
    "adapters_gpu": 60,
    "rescale_gradient_cpu": 0,
    "svd_cpu": 0,
    "stability_cpu": 0,
    "fp8_cpu": 0,
    "zero_cpu": 0,
}
SECONDS = OF_A_MODEL | FIXED
