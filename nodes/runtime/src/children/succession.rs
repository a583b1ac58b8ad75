//! The children of a node as they pass from one program of it to the next, see [`crate::upgrade`].

use std::io;
use std::sync::Arc;

use tokio::sync::MutexGuard;
use tracing::error;

use super::places::{Place, Places};
use super::port::Port;
use super::{Children, Unstarted, policy};
use crate::drain::Drained;
use crate::parent::Spec;
use crate::running::Instance;
use crate::sockets::Socket;
use crate::supervisor::{Paused, Process, Program, Snapshot};
use crate::upgrade::{self, ChildrenPart, Descriptors, Packing, PlacePart, PortPart, Succession};

/// The processes of a node that an earlier program has started.
#[derive(Debug)]
pub(super) struct Former {
    /// One a place.
    processes: Vec<Option<Snapshot>>,
    leaving: Vec<Snapshot>,
    refusing: bool,
    drained: Drained,
    /// The node has come back: whoever runs by this program may stay.
    returned: bool,
}

/// As long as this lives nothing changes about the children.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    _turn: MutexGuard<'a, ()>,
    _paused: Vec<Paused>,
}

impl Children {
    /// All that another program needs to go on with them.
    pub(crate) async fn hand_over(&self, packing: &mut Packing) -> io::Result<(ChildrenPart, Held<'_>)> {
        let turn = self.changing.lock().await;
        let (all, leaving) = {
            let mut places = self.places();
            places.part();
            (places.children.clone(), places.leaving.clone())
        };
        let mut held = Held { _turn: turn, _paused: Vec::new() };
        let mut along = Drained::default();
        let mut pause = async |process: &Process| {
            let (snapshot, paused) = process.pause().await?;
            held._paused.push(paused);
            along.add(&snapshot.report.drained);
            packing.process(snapshot)
        };
        let (mut processes, mut former) = (Vec::new(), Vec::new());
        for place in &all {
            processes.push(pause(&place.process).await?);
        }
        for process in &leaving {
            former.push(pause(process).await?);
        }
        let place = |(place, process): (&Place, _)| {
            io::Result::Ok(PlacePart { own: packing.sockets(&place.own)?, process: Some(process) })
        };
        let places = all.iter().zip(processes).map(place).collect::<Result<_, _>>()?;
        let now = self.places();
        let (ports, refusing) = (ports(&now.shared, packing)?, now.refusing);
        // What those tell that are handed over comes with each of them.
        let drained = now.drained().since(&along);
        drop(now);
        Ok((ChildrenPart { ports, places, leaving: former, refusing, drained }, held))
    }

    /// Goes on with those of an earlier program. All of them, or those that run by another one than this, are to be replaced.
    pub(super) fn resume(&self, former: Former, own: Vec<Vec<Arc<Socket>>>) {
        let Former { processes, leaving, refusing, drained, returned } = former;
        let mut places = self.places();
        (places.refusing, places.drained) = (refusing, drained);
        for (own, snapshot) in own.into_iter().zip(processes) {
            let real = snapshot.as_ref().and_then(|snapshot| snapshot.incarnation.as_ref());
            let stays = returned && real.is_some_and(|real| upgrade::runs_the_same(real.pid));
            let resumed = snapshot.and_then(|snapshot| {
                let program = Program::child(self.parcel(&places.spec, places.children.len(), own.clone()));
                self.resumed(program, &places, snapshot)
            });
            match resumed {
                Some(process) => places.children.push(Place { process, own, outdated: !stays }),
                None => places.add(self, own),
            }
        }
        for snapshot in leaving {
            let program = Program::ended(&snapshot.name);
            let resumed = self.resumed(program, &places, snapshot);
            places.leaving.extend(resumed);
        }
    }

    fn resumed(&self, program: Program, places: &Places, snapshot: Snapshot) -> Option<Arc<Process>> {
        let name = snapshot.name.clone();
        let given = snapshot.incarnation.as_ref().map(|real| real.given.clone()).unwrap_or_default();
        let shared = places.shared.iter().flat_map(|port| &port.sockets);
        let shared = shared.filter(|socket| given.contains(&socket.handed.id)).cloned().collect();
        match Process::resumed(program, policy(&places.spec.common), snapshot, shared) {
            Ok(process) => {
                self.watch(&process);
                Some(Arc::new(process))
            }
            Err(error) => {
                error!(process = name, %error, "an earlier program's process is lost");
                None
            }
        }
    }
}

impl Unstarted {
    /// The children that an earlier program hands over.
    pub(crate) fn resumed(
        spec: Spec,
        instance: &Instance,
        succession: &Succession,
        descriptors: &mut Descriptors,
    ) -> io::Result<Self> {
        let ChildrenPart { ports, places, leaving, refusing, drained } = &succession.handover.children;
        let port = |part: &PortPart| {
            let PortPart { name, wanted, address, common, .. } = part;
            let sockets = descriptors.sockets(&part.sockets)?;
            io::Result::Ok(Port {
                name: name.clone(),
                wanted: *wanted,
                address: *address,
                sockets,
                common: *common,
            })
        };
        let shared = ports.iter().map(port).collect::<Result<_, _>>()?;
        let own = places.iter().map(|place| descriptors.sockets(&place.own)).collect::<Result<_, _>>()?;
        let mut snapshot = |part| descriptors.process(part);
        let processes = places.iter().map(|place| place.process.as_ref().map(&mut snapshot).transpose());
        let former = Former {
            processes: processes.collect::<Result<_, _>>()?,
            leaving: leaving.iter().map(snapshot).collect::<Result<_, _>>()?,
            refusing: *refusing,
            drained: drained.clone(),
            returned: succession.handover.returned.is_some(),
        };
        Ok(Self::new(spec, instance, shared, own, Some(former)))
    }

    /// What another program of a node of a single process needs.
    pub(crate) fn hand_over(&self, packing: &mut Packing) -> io::Result<ChildrenPart> {
        let place = |own: &Vec<_>| io::Result::Ok(PlacePart { own: packing.sockets(own)?, process: None });
        let places = self.own.iter().map(place).collect::<Result<_, _>>()?;
        Ok(ChildrenPart { ports: ports(&self.shared, packing)?, places, ..ChildrenPart::default() })
    }
}

fn ports(shared: &[Port], packing: &mut Packing) -> io::Result<Vec<PortPart>> {
    let port = |port: &Port| {
        let Port { name, wanted, address, sockets, common } = port;
        let sockets = packing.sockets(sockets)?;
        Ok(PortPart { name: name.clone(), wanted: *wanted, address: *address, common: *common, sockets })
    };
    shared.iter().map(port).collect()
}
