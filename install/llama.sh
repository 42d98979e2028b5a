# llama.cpp, compiled once for each way of building it and kept as a wheel under /opt/moe2/wheels, so that an upgrade
# need not compile it again. pip's own cache would not tell a build with CUDA from one without.

readonly LLAMA_DIR=$ROOT/opt/moe2/wheels
# CUDA's larger kernels take up to two gigabytes each to compile.
readonly KB_PER_COMPILER=2000000
# Boards of 8 GB show less than this.
readonly SMALL_BOARD_KB=9000000

# Sets BACKEND, the way llama.cpp is built here: cuda-ARCHITECTURES, or cpu.
choose_backend() {
  BACKEND=cpu
  if [[ $HOST_KIND == cpu ]]; then
    if has_nvidia_card; then
      note_warning "There is an NVIDIA card, but no driver answers for it (nvidia-smi): llama.cpp is built for the CPU, which" \
        "is much slower. Install NVIDIA's driver and the CUDA toolkit, then run ./install.sh upgrade."
    fi
    return
  fi
  BACKEND=cuda-${CUDA_ARCHITECTURES//;/-}
  if lacks_vmm; then BACKEND+=-novmm; fi
  if has_llama_wheel; then return; fi
  if [[ -z $NVCC ]]; then
    note_warning "There is a GPU, but no nvcc in PATH or /usr/local/cuda/bin: llama.cpp is built for the CPU, which" \
      "is much slower. Install the CUDA toolkit, then run ./install.sh upgrade."
    BACKEND=cpu
  elif [[ -n $(nvcc_fault) ]]; then
    note_warning "$(nvcc_fault). llama.cpp is built for the CPU, which is much slower. Install such a toolkit beside it," \
      "put its nvcc first in PATH, then run ./install.sh upgrade."
    BACKEND=cpu
  elif [[ -e $(llama_folder)/failed && $COMMAND != upgrade ]]; then
    note_warning "llama.cpp could not be compiled with CUDA before; it is built for the CPU, which is much slower." \
      "./install.sh upgrade tries CUDA again."
    BACKEND=cpu
  fi
}

# ggml's memory pool reserves 32 GB of addresses, which a Jetson with 8 GB does not give; without it, it allocates plainly.
lacks_vmm() { [[ $HOST_KIND == jetson && -n $MEMORY_KB ]] && ((MEMORY_KB < SMALL_BOARD_KB)); }

# Where the wheel for BACKEND is kept, apart from one that was compiled with the code that crashes on this processor.
llama_folder() {
  printf '%s' "$LLAMA_DIR/$BACKEND"
  if has_amx; then printf -- '-noamx'; fi
}

# The wheel as it must be named: this release, any platform tag.
llama_wheel_in() {
  compgen -G "$1/llama_cpp_python-$(sed -nE 's/^llama-cpp-python==(.*)$/\1/p' constraints.txt)-*.whl"
}

# True where nothing needs to be compiled.
has_llama_wheel() {
  llama_wheel_in "$(llama_folder)" >/dev/null || { [[ -n $WHEELS ]] && llama_wheel_in "$WHEELS" >/dev/null; }
}

# A wheel for BACKEND in its folder. Where compiling with CUDA fails, BACKEND becomes cpu.
ensure_llama_wheel() {
  local folder anew=()
  folder=$(llama_folder)
  if has_amx; then
    # Nor is pip's own taken, which has the flags of its day.
    anew=(--no-cache-dir)
    if [[ -e $LLAMA_DIR/$BACKEND ]]; then
      step "Removing a llama.cpp that crashes on this processor" rm -rf "${LLAMA_DIR:?}/$BACKEND"
    fi
  fi
  if llama_wheel_in "$folder" >/dev/null; then
    kept "llama.cpp is built ($BACKEND)"
    return
  fi
  step "Making a folder for llama.cpp ($BACKEND)" install -d -m 0755 "$folder"
  if has_llama_wheel; then
    step "Taking llama.cpp from $WHEELS" install -m 0644 "$(llama_wheel_in "$WHEELS" | head -n 1)" "$folder/"
    return
  fi
  step "Creating an environment to build in" "$PYTHON" -m venv --clear "$LLAMA_DIR/.build"
  if [[ $BACKEND == cpu ]]; then
    say "llama.cpp is compiled unless pip has it already: 5 to 10 minutes on 2 cores."
    step "Compiling llama.cpp for the CPU" env CMAKE_ARGS="$(llama_flags)" CMAKE_BUILD_PARALLEL_LEVEL="$(build_jobs)" \
      "$LLAMA_DIR/.build/bin/python" -m pip wheel "${PIP_OPTIONS[@]}" "${PIP_SOURCES[@]}" "${anew[@]}" \
      --constraint constraints.txt --no-deps --wheel-dir "$folder" llama-cpp-python
  else
    say "llama.cpp is compiled with CUDA, which may take an hour on a Jetson."
    if ! attempt "Compiling llama.cpp with CUDA for $BACKEND" \
      env CUDACXX="$NVCC" CMAKE_ARGS="$(llama_flags)" CMAKE_BUILD_PARALLEL_LEVEL="$(build_jobs)" \
      "$LLAMA_DIR/.build/bin/python" -m pip wheel "${PIP_OPTIONS[@]}" "${PIP_SOURCES[@]}" --no-cache-dir \
      --constraint constraints.txt --no-deps --wheel-dir "$folder" llama-cpp-python; then
      cp "$LOG" "$folder/failed"
      note_warning "llama.cpp could not be compiled with CUDA; it is built for the CPU, which is much slower. What" \
        "the compiler said is in $folder/failed; ./install.sh upgrade tries again."
      BACKEND=cpu
      ensure_llama_wheel
      return
    fi
    if ! is_dry; then rm -f "$folder/failed"; fi
  fi
  step "Removing the environment to build in" rm -rf "$LLAMA_DIR/.build"
}

llama_flags() {
  llama_base_flags
  if [[ $BACKEND != cpu ]]; then printf -- ' -DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=%s' "$CUDA_ARCHITECTURES"; fi
  if [[ $BACKEND == *-novmm ]]; then printf -- ' -DGGML_CUDA_NO_VMM=ON'; fi
  printf '%s' "${CMAKE_ARGS:+ $CMAKE_ARGS}"
}

# Compilers at once: one for each core, but no more than the memory has room for; a Jetson's may have less.
build_jobs() {
  local cores jobs
  cores=$(nproc)
  jobs=$((${MEMORY_KB:-0} / KB_PER_COMPILER))
  if ((jobs < 1)); then jobs=1; fi
  if ((jobs > cores)); then jobs=$cores; fi
  printf '%d' "$jobs"
}

# llama.cpp must load here, and use the GPU if it is meant to; a wheel that was brought along may do neither.
check_llama() {
  local tried=$RELEASE/.gpu-offload
  step "Trying llama.cpp" try_llama "$tried"
  if ! is_dry && [[ $BACKEND != cpu && $(tail -n 1 "$tried") != True ]]; then
    note_warning "This llama.cpp cannot use the host's GPU: the agent will run on the CPU, which is much slower." \
      "Build its wheel on such a host with CMAKE_ARGS='$(llama_flags)'."
  fi
}

try_llama() { "$RELEASE/bin/python" -c 'import llama_cpp; print(llama_cpp.llama_supports_gpu_offload())' >"$1"; }

# -1, all layers on the GPU, where llama.cpp can; otherwise nothing.
gpu_layers() {
  if is_dry; then
    [[ $BACKEND == cpu ]] || printf -- '-1'
  elif [[ $HOST_KIND != cpu && $(tail -n 1 "$RELEASE/.gpu-offload" 2>/dev/null) == True ]]; then
    printf -- '-1'
  fi
}
