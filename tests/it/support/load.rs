//! Pods that are created and deleted, until something happens to the driver.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::kubelet::{Kubelet, Volume};
use super::pods::{Model, Pod};
use super::random::Random;

/// kubelet's state of a pod's volume.
#[derive(Debug)]
pub(crate) enum State {
    Gone,
    /// The publish is not answered yet.
    Starting(Volume, Model),
    Running(Pod),
    /// The unpublish is not answered yet.
    Leaving(Volume),
}

impl State {
    /// The volume of a pod that is not gone; the pod's open files are closed.
    pub(crate) fn volume(self) -> Option<Volume> {
        match self {
            Self::Gone => None,
            Self::Starting(volume, _) | Self::Leaving(volume) => Some(volume),
            Self::Running(pod) => Some(pod.end()),
        }
    }
}

/// Running pods, each on a task of its own.
#[derive(Debug)]
pub(crate) struct Load {
    pods: JoinSet<State>,
    over: Arc<AtomicBool>,
}

impl Load {
    /// Pods of these numbers that each want some model, read it, and leave.
    /// Pods that run already continue.
    pub(crate) fn start(
        pods: RangeInclusive<u64>,
        mut running: Vec<Pod>,
        models: &[Model],
        kubelet: &Kubelet,
        random: &mut Random,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for pod in pods {
            let at = running.iter().position(|running| running.volume.pod == pod.to_string());
            let state = at.map_or(State::Gone, |at| State::Running(running.swap_remove(at)));
            let (models, kubelet) = (models.to_vec(), kubelet.clone());
            let (random, over) = (random.split(), Arc::clone(&over));
            tasks.spawn(live(pod, state, models, kubelet, random, over));
        }
        Self { pods: tasks, over }
    }

    /// What pods see from now on is not counted as an error.
    pub(crate) fn over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// The state of each pod, once its last call is answered or cancelled.
    pub(crate) async fn end(self) -> Vec<State> {
        self.over();
        self.pods.join_all().await
    }
}

async fn live(
    pod: u64,
    mut state: State,
    models: Vec<Model>,
    kubelet: Kubelet,
    mut random: Random,
    over: Arc<AtomicBool>,
) -> State {
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(random.up_to(Duration::from_millis(30))).await;
        state = match state {
            State::Gone => {
                let model = random.one_of(&models).clone();
                State::Starting(model.volume(&kubelet, pod), model)
            }
            State::Starting(volume, model) => match volume.publish().await {
                Ok(()) => State::Running(Pod::start(volume, &model)),
                Err(_) => State::Starting(volume, model),
            },
            State::Running(pod) => {
                let wrong = pod.look();
                assert!(wrong.is_empty() || over.load(Ordering::Relaxed), "{wrong:?}");
                State::Leaving(pod.end())
            }
            State::Leaving(volume) => match volume.unpublish().await {
                Ok(()) => State::Gone,
                Err(_) => State::Leaving(volume),
            },
        };
    }
    state
}
