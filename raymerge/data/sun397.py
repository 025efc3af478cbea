"""SUN397: scenes (Xiao et al. 2010), the first of the official partitions."""

from collections.abc import Mapping
from pathlib import Path

from raymerge.data._dataset import ByHand, Dataset, HuggingFace, Layout, RawSplit, Samples
from raymerge.data._readers import image_folder, listed_files, parquet_split, read_lines
from raymerge.errors import DataError

REPO = "tanganke/sun397"

# Sorted as folder names: jail_cell before jail_indoor, which the official ClassName.txt has the other way round.
_NAMES = """
abbey airplane_cabin airport_terminal alley amphitheater amusement_arcade amusement_park anechoic_chamber
apartment_building_outdoor apse_indoor aquarium aqueduct arch archive arrival_gate_outdoor art_gallery art_school
art_studio assembly_line athletic_field_outdoor atrium_public attic auditorium auto_factory badlands
badminton_court_indoor baggage_claim bakery_shop balcony_exterior balcony_interior ball_pit ballroom bamboo_forest
banquet_hall bar barn barndoor baseball_field basement basilica basketball_court_outdoor bathroom batters_box bayou
bazaar_indoor bazaar_outdoor beach beauty_salon bedroom berth biology_laboratory bistro_indoor boardwalk boat_deck
boathouse bookstore booth_indoor botanical_garden bow_window_indoor bow_window_outdoor bowling_alley boxing_ring
brewery_indoor bridge building_facade bullring burial_chamber bus_interior butchers_shop butte cabin_outdoor
cafeteria campsite campus canal_natural canal_urban candy_store canyon car_interior_backseat car_interior_frontseat
carrousel casino_indoor castle catacomb cathedral_indoor cathedral_outdoor cavern_indoor cemetery chalet
cheese_factory chemistry_lab chicken_coop_indoor chicken_coop_outdoor childs_room church_indoor church_outdoor
classroom clean_room cliff cloister_indoor closet clothing_store coast cockpit coffee_shop computer_room
conference_center conference_room construction_site control_room control_tower_outdoor corn_field corral corridor
cottage_garden courthouse courtroom courtyard covered_bridge_exterior creek crevasse crosswalk cubicle_office dam
delicatessen dentists_office desert_sand desert_vegetation diner_indoor diner_outdoor dinette_home dinette_vehicle
dining_car dining_room discotheque dock doorway_outdoor dorm_room driveway driving_range_outdoor drugstore
electrical_substation elevator_door elevator_interior elevator_shaft engine_room escalator_indoor excavation
factory_indoor fairway fastfood_restaurant field_cultivated field_wild fire_escape fire_station firing_range_indoor
fishpond florist_shop_indoor food_court forest_broadleaf forest_needleleaf forest_path forest_road formal_garden
fountain galley game_room garage_indoor garbage_dump gas_station gazebo_exterior general_store_indoor
general_store_outdoor gift_shop golf_course greenhouse_indoor greenhouse_outdoor gymnasium_indoor hangar_indoor
hangar_outdoor harbor hayfield heliport herb_garden highway hill home_office hospital hospital_room hot_spring
hot_tub_outdoor hotel_outdoor hotel_room house hunting_lodge_outdoor ice_cream_parlor ice_floe ice_shelf
ice_skating_rink_indoor ice_skating_rink_outdoor iceberg igloo industrial_area inn_outdoor islet jacuzzi_indoor
jail_cell jail_indoor jewelry_shop kasbah kennel_indoor kennel_outdoor kindergarden_classroom kitchen kitchenette
labyrinth_outdoor lake_natural landfill landing_deck laundromat lecture_room library_indoor library_outdoor
lido_deck_outdoor lift_bridge lighthouse limousine_interior living_room lobby lock_chamber locker_room mansion
manufactured_home market_indoor market_outdoor marsh martial_arts_gym mausoleum medina moat_water monastery_outdoor
mosque_indoor mosque_outdoor motel mountain mountain_snowy movie_theater_indoor museum_indoor music_store
music_studio nuclear_power_plant_outdoor nursery oast_house observatory_outdoor ocean office office_building
oil_refinery_outdoor oilrig operating_room orchard outhouse_outdoor pagoda palace pantry park parking_garage_indoor
parking_garage_outdoor parking_lot parlor pasture patio pavilion pharmacy phone_booth physics_laboratory picnic_area
pilothouse_indoor planetarium_outdoor playground playroom plaza podium_indoor podium_outdoor pond
poolroom_establishment poolroom_home power_plant_outdoor promenade_deck pub_indoor pulpit putting_green racecourse
raceway raft railroad_track rainforest reception recreation_room residential_neighborhood restaurant
restaurant_kitchen restaurant_patio rice_paddy riding_arena river rock_arch rope_bridge ruin runway sandbar sandbox
sauna schoolhouse sea_cliff server_room shed shoe_shop shopfront shopping_mall_indoor shower skatepark ski_lodge
ski_resort ski_slope sky skyscraper slum snowfield squash_court stable stadium_baseball stadium_football
stage_indoor staircase street subway_interior subway_station_platform supermarket sushi_bar swamp
swimming_pool_indoor swimming_pool_outdoor synagogue_indoor synagogue_outdoor television_studio temple_east_asia
temple_south_asia tennis_court_indoor tennis_court_outdoor tent_outdoor theater_indoor_procenium
theater_indoor_seats thriftshop throne_room ticket_booth toll_plaza topiary_garden tower toyshop track_outdoor
train_railway train_station_platform tree_farm tree_house trench underwater_coral_reef utility_room valley
van_interior vegetable_garden veranda veterinarians_office viaduct videostore village vineyard volcano
volleyball_court_indoor volleyball_court_outdoor waiting_room warehouse_indoor water_tower waterfall_block
waterfall_fan waterfall_plunge watering_hole wave wet_bar wheat_field wind_farm windmill wine_cellar_barrel_storage
wine_cellar_bottle_storage wrestling_ring_indoor yard youth_hostel
"""

FOLDERS = tuple(f"{name[0]}_{name}" for name in _NAMES.split())
CLASSES = tuple(folder[2:].replace("_", " ") for folder in FOLDERS)
LISTS: Mapping[str, str] = {"train": "Training_01.txt", "test": "Testing_01.txt"}


def read_folders(root: Path, split: RawSplit) -> Samples:
    return image_folder(root / "sun397" / {"train": "train", "test": "val"}[split], FOLDERS)


def read_archive(root: Path, split: RawSplit) -> Samples:
    """The official archive with the lists of the first partition, in the order that flattened class folders give."""
    folder = root / "SUN397"
    path = folder / LISTS[split]
    numbers = {name: label for label, name in enumerate(FOLDERS)}
    listed: list[tuple[int, str, Path]] = []
    for line in read_lines(path):  # such as /a/apartment_building/outdoor/sun_aaa.jpg
        *parents, file = line.strip("/").split("/")
        name = "_".join(parents)
        if name not in numbers:
            raise DataError(f"{path}: line '{line}' is in none of the 397 classes; get the official list again.")
        listed.append((numbers[name], file, folder.joinpath(*parents, file)))
    listed.sort(key=lambda entry: entry[:2])
    return listed_files([image for _, _, image in listed], [label for label, _, _ in listed], path)


def read_parquet(root: Path, split: RawSplit) -> Samples:
    spellings = dict(zip(FOLDERS, CLASSES, strict=True))
    return parquet_split(root, REPO, split, class_names=CLASSES, spellings=spellings)


DATASET = Dataset(
    name="SUN397",
    classes=CLASSES,
    folders=FOLDERS,
    templates=("a photo of a {}.", "a photo of the {}."),
    num_train=19_850,
    num_test=19_850,
    val_sha256="0eda92f3f3041b32",
    layouts=(
        Layout("reference", needs=("sun397/train", "sun397/val"), read=read_folders),
        Layout("torchvision", needs=tuple(f"SUN397/{part}" for part in ("a", *LISTS.values())), read=read_archive),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        HuggingFace(REPO),
        ByHand(
            "Its address is dead. Unpack a copy of SUN397.tar.gz (37 GB, MD5 8ca2778205c41d23104230ba66911c7a) "
            "so that SUN397/a/abbey/ lies under the data root, and put Training_01.txt and Testing_01.txt of the "
            "official Partitions.zip into SUN397/. Or make folders sun397/train/<letter>_<class>/ from the first list "
            "and sun397/val/<letter>_<class>/ from the second, such as sun397/train/a_apartment_building_outdoor/."
        ),
    ),
    note="The classes jail cell and jail indoor come in the order of folder names, not in that of ClassName.txt.",
)
