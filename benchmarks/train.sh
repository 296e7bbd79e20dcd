# For the scripts here: `train FOLDER OPTION...` trains a student into FOLDER, unless it is there; it goes on where a run was stopped.
train() {
    folder=$1 && shift
    test ! -f "$folder/distillation.json" || return 0
    resume=$(ls "$folder"/checkpoints/step-*.pt > /dev/null 2>&1 && echo --resume || true)
    sd train-student --out "$folder" $resume "$@"
}
