# For the scripts here: `train FOLDER OPTION...` trains a student into FOLDER, unless it is there; it goes on where a run was stopped.
train() {
    folder=$1 && shift
    test ! -f "$folder/distillation.json" || return 0
    sd train-student --out "$folder" "$@"
}
