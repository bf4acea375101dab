"""Keys of GPT-NeoX configs that have no effect here."""

from __future__ import annotations

# Launching.
_LAUNCH = """
    launcher hostfile include exclude num_nodes num_gpus master_port master_addr rank local_rank world_size
    detect_nvlink_pairs deepspeed_extra_args force_multi user_script user_args no_ssh_check deepspeed_mpi
    deepspeed_slurm deepspeed_jsrun comment git_hash node_rank account autotuning autotuning_run
"""
# Parallelism.
_PARALLELISM = """
    pipe_parallel_size model_parallel_size pipe_partition_method is_pipe_parallel zero_optimization zero_stage
    zero_reduce_scatter zero_contiguous_gradients zero_reduce_bucket_size zero_allgather_bucket_size
    zero_allow_untested_optimizer dynamic_loss_scale distributed_backend communication_data_type
    prescale_gradients gradient_predivide_factor disable_allgather global_num_gpus expert_interval
    sequence_parallel context_parallel_size iteration fp32_allreduce allreduce_bucket_size
"""
# Memory.
_MEMORY = """
    checkpoint_num_layers partition_activations synchronize_each_layer contiguous_checkpointing
    checkpoint_in_cpu deepspeed_activation_checkpointing activation_checkpointing gas train_micro_batch_size
    data_types grad_accum_dtype
"""
# Fused operations.
_FUSION = """
    scaled_upper_triang_masked_softmax_fusion scaled_masked_softmax_fusion bias_dropout_fusion rope_fusion
    rmsnorm_fusion layernorm_fusion fp16_lm_cross_entropy apply_query_key_layer_scaling
    attention_softmax_in_fp32 use_flashattn_swiglu te_columnparallel te_rowparallel te_layernorm_mlp te_mha
    te_fp8_format use_triton mamba_selective_scan_fusion fp32_residual_connection
"""
# Initial values, which follow scale_by_depth and scale_by_in here.
_INITIAL = """
    init_method init_method_std output_layer_init_method coord_check params_dtype
"""
# Logs and trackers.
_LOGS = """
    log_dir log_optimizer_states log_grad_norm log_grad_pct_zeros log_param_norm log_gradient_noise_scale
    log_memory_stats gradient_noise_scale_n_batches gradient_noise_scale_cpu_offload steps_per_print
    wall_clock_breakdown tensorboard_dir tensorboard_writer use_tensorboard use_wandb wandb_group wandb_team
    wandb_project wandb_host wandb_init_all_ranks wandb_run_name wandb use_comet comet_workspace comet_project
    comet_experiment_name comet_tags comet_others memory_profiling memory_profiling_path profile
    profile_step_start profile_step_stop flops_profiler dump_state monitor_config csv_monitor logging_backend
    log_interval_seconds
"""
# Checkpoints.
_CHECKPOINTS = """
    s3_path s3_chunk_size extra_save_iters checkpoint_scale checkpoint finetune no_load_optim no_load_rng
    no_save_optim no_save_rng checkpoint_validation_with_forward_pass save_iters keep_last_n_checkpoints
    config_files override_lr_scheduler use_checkpoint_lr_scheduler load_universal_checkpoint
"""
# Data.
_DATA = """
    test_data_paths test_data_weights valid_data_weights num_workers mmap_warmup shuffle
    eval_interval weighted_sampler_alpha pack_impl short_seq_prob adlr_autoresume adlr_autoresume_interval
    onnx_safe padded_vocab_size eval_tasks eval_results_prefix do_train do_valid do_test train_impl
    exit_interval char_level_ppl
"""
# Text generation.
_GENERATION = """
    text_gen_type temperature top_p top_k maximum_tokens prompt_end sample_input_file sample_output_file
    num_samples recompute return_logits
"""
# What other keys imply, or nothing uses.
_UNUSED_SIZES = """
    moe_top_k moe_expert_parallel_size mamba_causal_conv_fusion mamba_inner_func_fusion attention_backend
    output_layer_parallelism lazy_mpu_init deepscale deepscale_config deepspeed loss_scale amp fp16_opt_level
    dropout_p use_cpu_initialization clip_grad hysteresis min_scale loss_scale_window initial_scale_power
"""
UNUSED = frozenset(name for part in (
    _LAUNCH, _PARALLELISM, _MEMORY, _FUSION, _INITIAL, _LOGS,
    _CHECKPOINTS, _DATA, _GENERATION, _UNUSED_SIZES,
) for name in part.split())  # fmt: skip
